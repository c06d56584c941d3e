"""Messages that the wire's tests send."""

from __future__ import annotations

from typing import ClassVar

from runtime.actors import Actor, ActorRef, Lane, Message, Request
from runtime.spi import LayerSpan
from runtime.wire import Tensor


class Number(Message, frozen=True, tag="test.number"):
    value: int


class Everything(Message, frozen=True, tag="test.everything"):
    text: str
    ref: ActorRef
    span: LayerSpan
    tensors: tuple[Tensor, ...]
    named: dict[str, Tensor]
    maybe: Tensor | None = None


class Double(Request[Number], frozen=True, tag="test.double"):
    value: int


class Hold(Request[Number], frozen=True, tag="test.hold"):
    """Never answered."""


class Store(Request[Number], frozen=True, tag="test.store"):
    """Answered with the size of the tensor."""

    lane: ClassVar[Lane] = Lane.BULK
    tensor: Tensor


class Doubler(Actor):
    """Doubles numbers, keeps tensors and numbers."""

    def __init__(self) -> None:
        self.stored: list[Tensor] = []
        self.numbers: list[int] = []

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Double(value):
                return Number(value * 2)
            case Store(tensor):
                self.stored.append(tensor)
                return Number(tensor.nbytes)
            case Number(value):
                self.numbers.append(value)
            case Hold():
                self.context.reply_later()
        return None
