"""Traffic for simulations: a bulk lane that always has more to send."""

from __future__ import annotations

from typing import ClassVar

from runtime.actors import Actor, ActorRef, Lane, Message, Request
from runtime.errors import RuntimeFault
from runtime.testing.simulation.node import SimulatedNode
from runtime.wire import Tensor

BLOCK = 1 << 20
"""Bytes of each message."""
AHEAD = 2
"""Messages that wait to be answered, so that the lane is never idle."""


class Received(Message, frozen=True, tag="simulation.received"):
    """So many bytes have come."""

    nbytes: int


class Block(Request[Received], frozen=True, tag="simulation.block"):
    """Bytes that are of no use."""

    lane: ClassVar[Lane] = Lane.BULK
    tensor: Tensor


class _Sink(Actor):
    async def receive(self, message: Message) -> Message | None:
        return Received(message.tensor.nbytes) if isinstance(message, Block) else None


class _Source(Actor):
    def __init__(self, saturation: Saturation, sink: ActorRef) -> None:
        self._saturation = saturation
        self._sink = sink

    async def started(self) -> None:
        for number in range(AHEAD):
            self.context.start_task(self._send(), f"send {number}")

    async def receive(self, message: Message) -> None:
        del message

    async def _send(self) -> None:
        block = Block(Tensor("uint8", (BLOCK,), bytes(BLOCK)))
        while True:
            try:
                answer = await self.context.ask(self._sink, block, 120)
            except RuntimeFault as fault:
                self._saturation.fault = fault
                return
            self._saturation.received += answer.nbytes


class Saturation:
    """Bulk from one node to another, as fast as it goes, until either ends."""

    def __init__(self, source: SimulatedNode, target: SimulatedNode) -> None:
        self.received = 0
        """Bytes that were acknowledged."""
        self.fault: RuntimeFault | None = None
        """What ended it."""
        sink = target.spawn(_Sink, f"sink-of-{source.name}")
        source.spawn(lambda: _Source(self, sink), f"source-to-{target.name}")
