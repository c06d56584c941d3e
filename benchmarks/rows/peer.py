"""The other process of the remote rows: a node with actors, and bare WebSockets that do the same work.

    python -m benchmarks.rows.peer asyncio|uvloop

It prints where both listen, as JSON, and runs until its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import ClassVar

from loguru import logger
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.rows.local import Count, Counter
from runtime.actors import Actor, ActorSystem, Lane, Message, Request
from runtime.wire import Network, Tensor
from runtime.wire.frame import MAX_FRAME


class Block(Message, frozen=True, tag="bench.block"):
    """A tensor."""

    lane: ClassVar[Lane] = Lane.BULK
    tensor: Tensor


class Received(Request[Count], frozen=True, tag="bench.received"):
    """Answered with the bytes of tensors so far; on the bulk lane, behind them."""

    lane: ClassVar[Lane] = Lane.BULK


class Sink(Actor):
    """Adds up the bytes of tensors."""

    def __init__(self) -> None:
        self.total = 0

    async def receive(self, message: Message) -> Message | None:
        """Take a :class:`Block` or a :class:`Received`."""
        if isinstance(message, Block):
            self.total += message.tensor.nbytes
            return None
        return Count(self.total)


async def bare(socket: ServerConnection) -> None:
    """Answer a frame that begins with ``?`` with as many bytes as it says; take note of others."""
    async for frame in socket:
        if frame[:1] == b"?":
            await socket.send(bytes(int.from_bytes(bytes(frame[1:5]), "little")))  # type: ignore[arg-type]  # all frames are binary


async def main() -> None:
    """Serve until the input is closed."""
    system = ActorSystem("peer")
    system.spawn(Counter, "counter")
    system.spawn(Sink, "sink")
    network = Network(system)
    await network.listen("127.0.0.1", 0)
    async with serve(bare, "127.0.0.1", 0, compression=None, ping_interval=None, max_size=MAX_FRAME) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(json.dumps({"node": network.address, "bare": f"ws://127.0.0.1:{port}/"}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await system.shut_down(1.0)
    await network.close()


if __name__ == "__main__":
    logger.remove()
    factory = asyncio.new_event_loop
    if sys.argv[1] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
