"""One session with one peer: two connections, each with a writer and a reader, around a :class:`Session`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any

import msgspec
from loguru import logger

from runtime.actors import Answer, Ask, Failure, Gone, Lane, Signal, Unwatch, Watch
from runtime.errors import MailboxFull, PeerUnreachable, ProtocolError, RuntimeFault, TooLarge
from runtime.wire.codec import UnknownMessage, decode, encode
from runtime.wire.connection import NORMAL, POLICY, Connection, ConnectionEnded
from runtime.wire.limits import Limits
from runtime.wire.session import BULK, CONTROL, LaneTraffic, Session
from runtime.wire.tensor import Buffer

MOMENT = 50e-6
"""Seconds in which messages are put together rather than each sent at once."""

_AWAITED = frozenset({Ask, Answer, Failure})
"""Kinds of signals that somebody waits for."""
_VITAL = frozenset({Answer, Failure, Watch, Unwatch, Gone})
"""Kinds of signals whose loss would leave somebody waiting for ever.

They are few, and have room of their own: a peer that does not even take those is as good as gone. An answer that is
refused on the bulk lane becomes a failure on the control lane.
"""


class PeerInfo(msgspec.Struct, frozen=True):
    """Who is at the other end of a link."""

    node: str
    boot: int
    """Milliseconds since the epoch at its start."""
    instance: bytes
    address: str
    """``host:port`` where it can be dialled; empty if it cannot."""


class _Receipt:
    """Gives back the credit of one message, when it is called or when it is let go of, whichever comes first.

    A message may end in many ways (handled, refused, dropped, drained), and its credit must not get lost in any.
    """

    __slots__ = ("_lane", "_loop", "_session", "_size")

    def __init__(self, loop: asyncio.AbstractEventLoop, session: Session, lane: Lane, size: int) -> None:
        self._loop = loop
        self._session = session
        self._lane = lane
        self._size = size

    def __call__(self) -> None:
        if self._size:
            size, self._size = self._size, 0
            self._session.consumed(self._lane, size)

    def __del__(self) -> None:
        # The garbage collector may run on any thread.
        if self._size and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._session.consumed, self._lane, self._size)


class Link:
    """A session. It is a pair: when either connection closes, so does the other."""

    def __init__(
        self,
        peer: PeerInfo,
        control: Connection,
        bulk: Connection,
        limits: Limits,
        deliver: Callable[[Link, Signal, Callable[[], None] | None], None],
        ended: Callable[[Link, str], None],
    ) -> None:
        self.peer = peer
        self.closed = asyncio.Event()
        """Set when the session is over."""
        self._loop = asyncio.get_running_loop()
        self.last_received = self._loop.time()
        """When the last frame came, on the event loop's clock."""
        self._control = control
        self._connections = {CONTROL: control, BULK: bulk}
        self._largest = {CONTROL: limits.control_message, BULK: limits.bulk_message}
        self._traffic = {lane: LaneTraffic() for lane in Lane}
        self._session = Session(limits, self._wake)
        self._work: dict[Lane, asyncio.Future[None] | None] = dict.fromkeys(Lane)
        self._next_at_once = 0.0
        """When a message may next be sent at once, on the monotonic clock."""
        self._roomy = {lane: asyncio.Event() for lane in Lane}
        """Not set while somebody may wait for room in a lane's queue."""
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._deliver = deliver
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    def start(self, first: bytes | None = None) -> None:
        """Begin to read and write; ``first`` goes ahead of everything on the control lane."""
        for lane in Lane:
            self._run(self._write(lane, first if lane is CONTROL else None), f"{lane.name.lower()} writer")
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
        size = len(parts[0]) if len(parts) == 1 else sum(memoryview(part).nbytes for part in parts)
        if size > self._largest[lane]:
            raise TooLarge(
                f"a message of {size} bytes for node {self.peer.node} is over the limit of the "
                f"{lane.name.lower()} lane, {self._largest[lane]} bytes"
            )
        kind = type(signal)
        if kind in _AWAITED and lane is CONTROL and self._send_at_once(parts, size):
            return
        try:
            self._session.put(lane, parts, size, share=2 if kind in _VITAL else 1)
        except MailboxFull as full:
            if kind in _VITAL and lane is CONTROL:
                self.close(f"it does not read: {full}")
            self._roomy[lane].clear()
            raise MailboxFull(f"the link to node {self.peer.node} is full: {full}") from None
        self._flushed.clear()

    def _send_at_once(self, parts: list[Buffer], size: int) -> bool:
        """Send what somebody waits for within the caller's own turn, if nothing goes before it on control.

        Many such messages within a moment are left to the writer, which puts them into one frame.
        """
        connection = self._control
        if self._work[CONTROL] is None or not connection.writable:
            return False
        now = monotonic()  # the event loop's clock may stand still within a turn, or be as coarse as a millisecond
        if now < self._next_at_once:
            return False
        frame = self._session.at_once(CONTROL, parts, size)
        if frame is None:
            return False
        self._next_at_once = now + MOMENT
        connection.send_now(frame)
        traffic = self._traffic[CONTROL]
        traffic.frames_out += 1
        traffic.bytes_out += len(frame)
        return True

    def traffic(self, lane: Lane) -> LaneTraffic:
        """Return what a lane has carried so far, and what it holds."""
        self._session.report(lane, self._traffic[lane])
        return msgspec.structs.replace(self._traffic[lane])

    async def room(self, lane: Lane) -> None:
        """Wait until the queue that refused a message has room again, or the session is over."""
        await self._roomy[lane].wait()

    async def flush(self) -> None:
        """Wait until everything queued is written, or the session is over."""
        await self._flushed.wait()

    def close(self, reason: str, code: int = NORMAL) -> None:
        """End the session at once; the connections are closed in the background."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._flushed.set()
        for roomy in self._roomy.values():
            roomy.set()
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
        connection, traffic, roomy = self._connections[lane], self._traffic[lane], self._roomy[lane]
        loop = asyncio.get_running_loop()
        if first is not None:
            await connection.send(first)
        while True:
            for frame in self._session.frames(lane):
                await connection.send(frame)
                traffic.frames_out += 1
                traffic.bytes_out += len(frame)
                if self._session.has_room(lane):
                    roomy.set()
                if lane is BULK:
                    # A connection with room in its buffers does not wait, and would keep the loop to itself.
                    await asyncio.sleep(0)
            if self._session.has_room(lane):
                roomy.set()
            if self._session.idle():
                self._flushed.set()
            self._work[lane] = work = loop.create_future()
            await work
            self._work[lane] = None

    def _wake(self, lane: Lane) -> None:
        work = self._work[lane]
        if work is not None and not work.done():
            work.set_result(None)

    async def _read(self, lane: Lane) -> None:
        await self._connections[lane].deliver(partial(self._receive, lane))

    def _receive(self, lane: Lane, frame: bytes) -> bool:
        """Take a frame, and say whether the next may follow before the actors get at what came in this one."""
        traffic = self._traffic[lane]
        self.last_received = self._loop.time()
        traffic.frames_in += 1
        traffic.bytes_in += len(frame)
        return self._take_all(lane, self._session.feed(lane, frame)) <= 1 and lane is CONTROL

    def _take_all(self, lane: Lane, payloads: list[memoryview]) -> int:
        """Deliver what a frame has completed, and return how much that was.

        No reference to a payload or its receipt may outlive this: they say when a message is done with.
        """
        for payload in payloads:
            self._take(payload, _Receipt(self._loop, self._session, lane, len(payload)) if lane is BULK else None)
            if self.closed.is_set():
                break  # what was delivered has ended the session: the rest of the frame belongs to no one
        if payloads and lane is CONTROL:
            # Consumed by the node itself, in whose mailboxes they are now: credit that one slow actor could use up
            # would silence the heartbeats that are sent beside it.
            self._session.consumed(lane, sum(map(len, payloads)), len(payloads))
        return len(payloads)

    def _take(self, payload: memoryview, receipt: _Receipt | None) -> None:
        try:
            signal = decode(payload)
        except UnknownMessage as fault:
            logger.warning("a message from node {} is dropped: {}", self.peer.node, fault)
            if fault.ask_id is not None:
                self._answer_unknown(fault.ask_id, fault)
            return
        self._deliver(self, signal, receipt)

    def _answer_unknown(self, ask_id: int, fault: RuntimeFault) -> None:
        try:
            self.send(Failure(ask_id, fault.code, fault.message), CONTROL)
        except (PeerUnreachable, MailboxFull) as unsent:
            logger.debug("the refusal of a message is not sent: {}", unsent)
