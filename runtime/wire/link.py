"""One session with one peer: two WebSockets, each with a bounded queue, a writer and a reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from loguru import logger

from runtime.actors import Answer, Failure, Gone, Lane, Signal, Unwatch, Watch
from runtime.errors import MailboxFull, PeerUnreachable, ProtocolError, RuntimeFault, TooLarge
from runtime.wire.chunk import Reassembler, frames
from runtime.wire.codec import UnknownMessage, decode, encode
from runtime.wire.connection import NORMAL, POLICY, Connection, ConnectionEnded
from runtime.wire.limits import Limits
from runtime.wire.tensor import Buffer


class PeerInfo(msgspec.Struct, frozen=True):
    """Who is at the other end of a link."""

    node: str
    boot: int
    """Milliseconds since the epoch at its start."""
    instance: bytes
    address: str
    """``host:port`` where it can be dialled; empty if it cannot."""


class LaneTraffic(msgspec.Struct):
    """What one lane of one link has carried."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    queued_messages: int = 0
    queued_bytes: int = 0


class _Outbox:
    """What waits to be written to one lane."""

    def __init__(self, lane: Lane, limits: Limits, traffic: LaneTraffic) -> None:
        self._lane = lane
        self._most_messages = limits.queue_messages
        self._most_bytes = limits.control_queue if lane is Lane.CONTROL else limits.bulk_queue
        self._traffic = traffic
        self._waiting: deque[tuple[list[Buffer], int]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self.empty = asyncio.Event()
        self.empty.set()

    def put(self, parts: list[Buffer], size: int, share: int) -> None:
        """Add a payload, unless the queue is fuller than ``share`` times its bounds."""
        messages, queued = self._traffic.queued_messages, self._traffic.queued_bytes
        if messages and (messages >= share * self._most_messages or queued + size > share * self._most_bytes):
            raise MailboxFull(
                f"{messages} messages ({queued} bytes) wait on the {self._lane.name.lower()} lane, and no more fit"
            )
        self._waiting.append((parts, size))
        self._traffic.queued_messages += 1
        self._traffic.queued_bytes += size
        self.empty.clear()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def next(self) -> tuple[list[Buffer], int]:
        """Wait for a payload; it counts as queued until :meth:`written`."""
        while not self._waiting:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._waiting.popleft()

    def written(self, size: int) -> None:
        """Take note that a payload has left."""
        self._traffic.queued_messages -= 1
        self._traffic.queued_bytes -= size
        if not self._traffic.queued_messages:
            self.empty.set()


class Link:
    """A session. It is a pair: when either connection closes, so does the other."""

    def __init__(
        self,
        peer: PeerInfo,
        control: Connection,
        bulk: Connection,
        limits: Limits,
        deliver: Callable[[Link, Signal], None],
        ended: Callable[[Link, str], None],
    ) -> None:
        self.peer = peer
        self.traffic = {lane: LaneTraffic() for lane in Lane}
        self.closed = asyncio.Event()
        """Set when the session is over."""
        self.last_received = asyncio.get_running_loop().time()
        """When the last frame came, on the event loop's clock."""
        self._connections = {Lane.CONTROL: control, Lane.BULK: bulk}
        self._largest = {Lane.CONTROL: limits.control_message, Lane.BULK: limits.bulk_message}
        self._outboxes = {lane: _Outbox(lane, limits, self.traffic[lane]) for lane in Lane}
        self._deliver = deliver
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    def start(self, first: bytes | None = None) -> None:
        """Begin to read and write; ``first`` goes ahead of everything on the control lane."""
        for lane in Lane:
            self._run(self._write(lane, first if lane is Lane.CONTROL else None), f"{lane.name.lower()} writer")
            self._run(self._read(lane), f"{lane.name.lower()} reader")

    def send(self, signal: Signal, lane: Lane) -> None:
        """Queue a signal.

        Raises:
            PeerUnreachable: the session is over.
            MailboxFull: the lane's queue is full.
            TooLarge: the signal is larger than the lane carries.
        """
        if self.closed.is_set():
            raise PeerUnreachable(f"the link to node {self.peer.node} has closed")
        parts = encode(signal)
        size = sum(memoryview(part).nbytes for part in parts)
        if size > self._largest[lane]:
            raise TooLarge(
                f"a message of {size} bytes for node {self.peer.node} is over the limit of the "
                f"{lane.name.lower()} lane, {self._largest[lane]} bytes"
            )
        # Life signs and answers are few, and losing one would leave somebody waiting for ever: they have room of
        # their own, and a peer that does not even take those is as good as gone.
        vital = isinstance(signal, Answer | Failure | Watch | Unwatch | Gone)
        try:
            self._outboxes[lane].put(parts, size, share=2 if vital else 1)
        except MailboxFull as full:
            if vital:
                self.close(f"it does not read: {full}")
            raise MailboxFull(f"the link to node {self.peer.node} is full: {full}") from None

    async def flush(self) -> None:
        """Wait until everything queued is written, or the session is over."""
        waits = [asyncio.ensure_future(self._emptied()), asyncio.ensure_future(self.closed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _emptied(self) -> bool:
        for outbox in self._outboxes.values():
            await outbox.empty.wait()
        return True

    def close(self, reason: str, code: int = NORMAL) -> None:
        """End the session at once; the connections are closed in the background."""
        if self.closed.is_set():
            return
        self.closed.set()
        this = asyncio.current_task()
        for task in self._tasks:
            if task is not this:
                task.cancel()
        self._closing = asyncio.get_running_loop().create_task(self._shut(code, reason), name=f"close {self.peer.node}")
        self._ended(self, reason)

    async def wait_closed(self) -> None:
        """Wait until the session is over and both connections are closed."""
        await self.closed.wait()
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _shut(self, code: int, reason: str) -> None:
        await asyncio.gather(*(connection.close(code, reason) for connection in self._connections.values()))

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work), name=f"{self.peer.node} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever ends one of the tasks ends the session, and nothing more."""
        try:
            await work
        except ConnectionEnded as ended:
            self.close(str(ended))
        except ProtocolError as fault:
            logger.warning("node {} is cut off: it broke the protocol: {}", self.peer.node, fault)
            self.close(f"protocol error: {fault}", POLICY)
        except Exception as error:  # noqa: BLE001 - a fault of ours with one peer's message must not harm the others
            logger.opt(exception=error).error("the link to node {} failed", self.peer.node)
            self.close(f"internal error: {error!r}", POLICY)

    async def _write(self, lane: Lane, first: bytes | None) -> None:
        connection, outbox, traffic = self._connections[lane], self._outboxes[lane], self.traffic[lane]
        if first is not None:
            await connection.send(first)
        while True:
            parts, size = await outbox.next()
            for frame in frames(parts):
                await connection.send(frame)
                traffic.frames_out += 1
                traffic.bytes_out += len(frame)
            outbox.written(size)

    async def _read(self, lane: Lane) -> None:
        connection, traffic = self._connections[lane], self.traffic[lane]
        loop = asyncio.get_running_loop()
        reassembler = Reassembler(self._largest[lane])
        while True:
            frame = await connection.recv()
            self.last_received = loop.time()
            traffic.frames_in += 1
            traffic.bytes_in += len(frame)
            payload = reassembler.feed(frame)
            if payload is not None:
                self._take(payload)
                del payload  # or it would stay in memory until the next one is complete

    def _take(self, payload: memoryview) -> None:
        try:
            signal = decode(payload)
        except UnknownMessage as fault:
            logger.warning("a message from node {} is dropped: {}", self.peer.node, fault)
            if fault.ask_id is not None:
                self._answer_unknown(fault.ask_id, fault)
            return
        self._deliver(self, signal)

    def _answer_unknown(self, ask_id: int, fault: RuntimeFault) -> None:
        try:
            self.send(Failure(ask_id, fault.code, fault.message), Lane.CONTROL)
        except (PeerUnreachable, MailboxFull) as unsent:
            logger.debug("the refusal of a message is not sent: {}", unsent)
