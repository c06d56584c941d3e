"""Messages between two processes, against bare WebSockets that carry the same bytes, and against xoscar."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.rows.cores import apart
from benchmarks.rows.local import Add, Count
from benchmarks.rows.peer import Block, Received
from benchmarks.rows.row import Aim, Row, compare
from runtime.actors import ActorRef, ActorSystem, Answer, Ask, Message, Tell
from runtime.errors import MailboxFull
from runtime.wire import Network, Tensor, encode
from runtime.wire.frame import BATCH_HEADER, CHUNK_BYTES, MAX_FRAME

ASKS = 1500
TELLS = 20_000
BURST = 64
BULK_BYTES = 64 * 1024 * 1024
TENSOR_BYTES = 4 * 1024 * 1024
PROBES = 600
SECONDS = 60.0

COUNTER = ActorRef("peer", "/counter")
SINK = ActorRef("peer", "/sink")


class Remote:
    """A node linked to the peer's, and a bare connection to it."""

    def __init__(self, system: ActorSystem, socket: ClientConnection) -> None:
        self.system = system
        self.socket = socket
        self.tensor = Tensor("uint8", (TENSOR_BYTES,), bytes(TENSOR_BYTES))

    async def asks(self) -> float:
        """Return asks a second, one after the other."""
        start = time.perf_counter()
        for _ in range(ASKS):
            await self.system.ask(COUNTER, Add(0), SECONDS)
        return ASKS / (time.perf_counter() - start)

    async def bare_echoes(self) -> float:
        """Return exchanges a second of the bytes that an ask takes, and its answer."""
        size = _frame_bytes(Ask(COUNTER, Add(0), 1 << 60, 60_000))
        question = _question(_frame_bytes(Answer(1 << 60, Count(0)))).ljust(size)
        start = time.perf_counter()
        for _ in range(ASKS):
            await self.socket.send(question)
            await self.socket.recv()
        return ASKS / (time.perf_counter() - start)

    async def tells(self) -> float:
        """Return tells a second, counted when the last has been handled."""
        message = Count(1)
        before = await self.system.ask(COUNTER, Add(0), SECONDS)
        start = time.perf_counter()
        for number in range(TELLS):
            await self._tell(COUNTER, message)
            if number % BURST == BURST - 1:
                await asyncio.sleep(0)
        after = await self.system.ask(COUNTER, Add(0), SECONDS)
        taken = time.perf_counter() - start
        if after.amount - before.amount != TELLS:
            raise RuntimeError(f"of {TELLS} tells {after.amount - before.amount} were handled")
        return TELLS / taken

    async def bare_frames(self) -> float:
        """Return messages a second, each in its own frame with the bytes of a tell."""
        frame = bytes(_frame_bytes(Tell(COUNTER, Count(1))))
        start = time.perf_counter()
        for _ in range(TELLS):
            await self.socket.send(frame)
        await self._bare_answer()
        return TELLS / (time.perf_counter() - start)

    async def bulk(self) -> float:
        """Return megabytes a second in tensors of 4 MB."""
        start = time.perf_counter()
        for _ in range(BULK_BYTES // TENSOR_BYTES):
            await self._tell(SINK, Block(self.tensor))
        await self.system.ask(SINK, Received(), SECONDS)
        return BULK_BYTES / 1e6 / (time.perf_counter() - start)

    async def bare_bulk(self) -> float:
        """Return megabytes a second in frames of the size of ours."""
        view = self.tensor.data[:CHUNK_BYTES]
        start = time.perf_counter()
        for _ in range(BULK_BYTES // CHUNK_BYTES):
            await self.socket.send(view)
        await self._bare_answer()
        return BULK_BYTES / 1e6 / (time.perf_counter() - start)

    async def latency(self) -> float:
        """Return the 99th percentile of the time that an ask takes, in microseconds."""
        times = []
        for _ in range(PROBES):
            start = time.perf_counter()
            await self.system.ask(COUNTER, Add(0), SECONDS)
            times.append(time.perf_counter() - start)
            await asyncio.sleep(0.0005)  # a probe now and then, not a load
        return sorted(times)[PROBES * 99 // 100] * 1e6

    async def latency_beside_bulk(self) -> float:
        """The same, while the bulk lane has all it can carry."""
        saturating = asyncio.create_task(self._saturate())
        try:
            return await self.latency()
        finally:
            saturating.cancel()
            await asyncio.gather(saturating, return_exceptions=True)
            await self.system.ask(SINK, Received(), SECONDS)

    async def _saturate(self) -> None:
        while True:
            await self._tell(SINK, Block(self.tensor))

    async def _tell(self, target: ActorRef, message: Message) -> None:
        try:
            self.system.tell(target, message)
        except MailboxFull:
            await self.system.send(target, message)

    async def _bare_answer(self) -> None:
        await self.socket.send(_question(16))
        await self.socket.recv()


def _frame_bytes(signal: Ask | Answer | Tell) -> int:
    """The bytes of a frame with this signal and no other."""
    return BATCH_HEADER + 4 + sum(len(part) for part in encode(signal))


def _question(size: int) -> bytes:
    return b"?" + size.to_bytes(4, "little")


@asynccontextmanager
async def _remote(loop: str) -> AsyncIterator[Remote]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.rows.peer",
        loop,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None  # noqa: S101 - for the types
    assert process.stdout is not None  # noqa: S101 - for the types
    at: dict[str, str] = json.loads(await process.stdout.readline())
    system = ActorSystem("bench")
    network = Network(system)
    up = asyncio.Event()
    network.subscribe(lambda peer: up.set(), lambda node, reason: None)
    network.dial(frozenset({at["node"]}))
    await up.wait()
    try:
        async with connect(at["bare"], compression=None, ping_interval=None, max_size=MAX_FRAME) as socket:
            yield Remote(system, socket)
    finally:
        await system.shut_down(1.0)
        await network.close()
        process.stdin.close()
        await process.wait()


async def _xoscar_asks(ref: Any) -> float:
    start = time.perf_counter()
    for _ in range(ASKS):
        await ref.add(0)
    return ASKS / (time.perf_counter() - start)


@asynccontextmanager
async def _xoscar() -> AsyncIterator[Any]:
    """An actor of xoscar's in a process of its own."""
    import xoscar

    from benchmarks.rows.xoscar_actor import XoscarCounter

    pool = await xoscar.create_actor_pool("127.0.0.1", n_process=1)
    try:
        yield await xoscar.create_actor(
            XoscarCounter,
            address=pool.external_address,
            uid="counter",
            allocate_strategy=xoscar.allocate_strategy.ProcessIndex(1),
        )
    finally:
        await pool.stop()


async def rows(loop: str) -> AsyncIterator[Row]:
    """Measure between two processes."""
    async with _remote(loop) as remote:
        with apart():
            async for row in _against_websockets(remote, loop):
                yield row
        try:
            import xoscar  # noqa: F401 - only whether it is there
        except ImportError:
            print("xoscar is not installed: its row is left out", file=sys.stderr)
            return
        async with _xoscar() as ref:
            with apart():
                yield await compare(
                    "remote ask, two processes",
                    remote.asks,
                    "xoscar, two processes",
                    partial(_xoscar_asks, ref),
                    Aim(least=1.5),
                    loop=loop,
                )


async def _against_websockets(remote: Remote, loop: str) -> AsyncIterator[Row]:
    yield await compare(
        "remote ask, two processes", remote.asks, "websockets echo", remote.bare_echoes, Aim(least=0.7), loop=loop
    )
    yield await compare(
        "remote tell, coalesced", remote.tells, "websockets, a frame each", remote.bare_frames, Aim(least=2), loop=loop
    )
    yield await compare(
        "bulk, 64 MB in tensors",
        remote.bulk,
        "websockets, same chunk",
        remote.bare_bulk,
        Aim(least=0.9),
        loop=loop,
        unit="MB/s",
    )
    yield await compare(
        "control p99 beside bulk",
        remote.latency_beside_bulk,
        "control p99, idle",
        remote.latency,
        Aim(most=3),
        loop=loop,
        unit="us",
    )
