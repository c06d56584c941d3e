"""Connections within one process: no sockets and no threads, so that they run under any event loop's clock.

A :class:`Wires` is a network of named hosts. Each node is given the medium of its host, and dials others by their
host's name::

    wires = Wires()
    a = Network(ActorSystem("a"), medium=wires.medium("host-a"))
    b = Network(ActorSystem("b"), medium=wires.medium("host-b"))

What a network does to frames is the business of a :class:`Weather`: the one given here lets everything through at
the next turn of the loop. A connection behaves as TCP does: what arrives is whole, in order, and once, whenever the
weather lets it through; and a sender waits while the other side has a window's worth of bytes to read.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import Callable

import msgspec

from runtime.errors import ConfigError, ProtocolError
from runtime.wire.address import format_address
from runtime.wire.connection import (
    ABNORMAL,
    GOING_AWAY,
    NORMAL,
    Admit,
    Connection,
    ConnectionEnded,
    Listener,
    Medium,
    Serve,
    cut_reason,
)
from runtime.wire.frame import MAX_FRAME
from runtime.wire.tensor import Buffer

WINDOW = 512 * 1024
"""Bytes that are on their way, or wait to be read, before a sender has to wait."""
_FIRST_PORT = 10_000


class Route(msgspec.Struct, frozen=True):
    """One direction of one connection."""

    source: str
    """The host that sends."""
    target: str
    """The host that receives."""
    connection: int
    """Counted from 1 in the order of dialling; both directions of a connection have the same."""
    dialled: bool
    """Whether the sender is the one that dialled."""


class Weather:
    """What happens to frames on their way. Subclass it to delay, lose or hold them.

    Everything is called on the event loop's thread, and nothing may wait.
    """

    def opens(self, route: Route, arrive: Callable[[], None]) -> None:
        """Carry an attempt to connect: call ``arrive`` when it gets through, never if it does not."""
        asyncio.get_running_loop().call_soon(arrive)

    def carry(self, route: Route, size: int, arrive: Callable[[], None]) -> None:
        """Carry a frame of ``size`` bytes, or a goodbye, which has none: call ``arrive`` when it gets there.

        A route has the promise of TCP: frames that arrive do so in the order in which they were sent, whatever is
        called first here. A frame that never arrives holds up those behind it. Calling ``arrive`` again does nothing.
        """
        asyncio.get_running_loop().call_soon(arrive)


class Wires:
    """A network of hosts within the process."""

    def __init__(self, weather: Weather | None = None, window: int = WINDOW) -> None:
        self.weather = weather or Weather()
        """Looked up for each frame, so it may be exchanged at any time."""
        self._window = window
        self._listeners: dict[tuple[str, int], _MemoryListener] = {}
        self._ends: dict[str, dict[MemoryConnection, None]] = {}
        """In the order of dialling, so that what happens to them does not depend on their hashes."""
        self._numbers = itertools.count(1)
        self._ports = itertools.count(_FIRST_PORT)

    def medium(self, host: str) -> Medium:
        """Return what a node on this host dials and listens with."""
        return _MemoryMedium(self, host)

    def crash(self, host: str, *, silently: bool = False) -> None:
        """End the life of a host's processes: nothing is listened on, and its connections are lost.

        The other ends hear of it, through the weather, as they do when a process is killed; ``silently`` is a machine
        that lost its power: they hear nothing. Stop the node's own tasks yourself.
        """
        for at in [at for at in self._listeners if at[0] == host]:
            self._listeners.pop(at).stop()
        for end in list(self._ends.get(host, ())):
            end.lose(silently)

    def reset(self, route: Route) -> None:
        """End the sending end of a route: its host was told that the other side does not know the connection."""
        for end in list(self._ends.get(route.source, ())):
            if end.route == route:
                end.end(ConnectionEnded(ABNORMAL))

    # -- for the classes below --------------------------------------------------------------------------------------

    async def connect(self, source: str, host: str, port: int) -> Connection:
        """See :meth:`Medium.dial`."""
        number = next(self._numbers)
        there, back = Route(source, host, number, True), Route(host, source, number, False)
        through = asyncio.get_running_loop().create_future()
        self.weather.opens(there, lambda: None if through.done() else through.set_result(None))
        await through
        listener = self._listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens at {format_address(host, port)}")
        if not listener.admit(source):
            raise ProtocolError("the peer takes no more connections from this host")
        near, far = MemoryConnection(self, there, self._window), MemoryConnection(self, back, self._window)
        near.other, far.other = far, near
        for end in (near, far):
            self._ends.setdefault(end.route.source, {})[end] = None
        listener.accept(far)
        return near

    def listen(self, host: str, port: int, serve: Serve, admit: Admit) -> Listener:
        """See :meth:`Medium.listen`."""
        port = port or next(self._ports)
        if (host, port) in self._listeners:
            address = format_address(host, port)
            raise ConfigError(f"cluster.listen: {address} is in use by another node", param="cluster.listen")
        listener = self._listeners[host, port] = _MemoryListener(self, host, port, serve, admit)
        return listener

    def unlisten(self, listener: _MemoryListener) -> None:
        """Forget a listener."""
        if self._listeners.get((listener.host, listener.port)) is listener:
            del self._listeners[listener.host, listener.port]

    def forget(self, end: MemoryConnection) -> None:
        """Forget one end of a connection."""
        self._ends.get(end.route.source, {}).pop(end, None)


class _MemoryMedium(Medium):
    def __init__(self, wires: Wires, host: str) -> None:
        self._wires = wires
        self._host = host

    async def dial(self, host: str, port: int) -> Connection:
        return await self._wires.connect(self._host, host, port)

    async def listen(self, host: str, port: int, serve: Serve, admit: Admit) -> Listener:
        """Listen on the host of this medium, whatever ``host`` says."""
        return self._wires.listen(self._host, port, serve, admit)


class MemoryConnection(Connection):
    """One end of a connection within the process."""

    def __init__(self, wires: Wires, route: Route, window: int) -> None:
        self.host = route.target
        self.route = route
        """The direction in which this end sends."""
        self.other: MemoryConnection
        """The other end; set once, by :class:`Wires`."""
        self._wires = wires
        self._window = window
        self._unread = 0
        """Bytes sent from here that the other side has not read."""
        self._way: deque[_OnItsWay] = deque()
        """What was sent from here and has not arrived."""
        self._arrived: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._closing = False
        self._end: ConnectionEnded | None = None
        self._ended = asyncio.Event()

    async def send(self, frame: Buffer) -> None:
        while self._end is None and not self._closing and self._unread >= self._window:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self._end is not None or self._closing:
            raise self._end or ConnectionEnded()
        if len(frame) > MAX_FRAME:
            raise ProtocolError(f"a frame has at most {MAX_FRAME} bytes, not {len(frame)}")
        copy = bytes(frame)
        self._unread += len(copy)
        self._carry(len(copy), lambda: self.other.take(copy))

    async def recv(self) -> bytes:
        while not self._arrived:
            if self._end is not None:
                raise self._end
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        frame = self._arrived.popleft()
        self.other.read(len(frame))
        return frame

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye. Unlike a WebSocket this does not wait for the other side's."""
        if self._closing or self._end is not None:
            return
        self._closing = True
        goodbye = ConnectionEnded(code, cut_reason(reason))
        self._carry(0, lambda: self.other.end(goodbye))
        self.end(ConnectionEnded(code, cut_reason(reason)))

    async def wait_closed(self) -> None:
        await self._ended.wait()

    # -- what happens to this end -----------------------------------------------------------------------------------

    def take(self, frame: bytes) -> None:
        """A frame has arrived."""
        if self._end is None:
            self._arrived.append(frame)
            _wake(self._reader)

    def read(self, size: int) -> None:
        """The other side has read this many bytes."""
        self._unread -= size
        _wake(self._writer)

    def end(self, how: ConnectionEnded) -> None:
        """The connection is over for this end."""
        if self._end is None:
            self._end = how
            self._wires.forget(self)
            self._ended.set()
            _wake(self._reader)
            _wake(self._writer)

    def lose(self, silently: bool) -> None:
        """This end's process is gone."""
        if self._end is None:
            self._arrived.clear()
            if not silently:
                self._carry(0, lambda: self.other.end(ConnectionEnded(ABNORMAL)))
            self.end(ConnectionEnded(ABNORMAL))

    def _carry(self, size: int, act: Callable[[], None]) -> None:
        item = _OnItsWay(act)
        self._way.append(item)

        def arrive() -> None:
            item.due = True
            while self._way and self._way[0].due:
                self._way.popleft().act()

        self._wires.weather.carry(self.route, size, arrive)


class _OnItsWay:
    """A frame that was sent. It acts when it is due and everything before it has acted."""

    __slots__ = ("act", "due")

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.due = False


class _MemoryListener(Listener):
    def __init__(self, wires: Wires, host: str, port: int, serve: Serve, admit: Admit) -> None:
        self.host = host
        self.port = port
        self.admit = admit
        self._wires = wires
        self._serve = serve
        # Who dials runs the code that accepts, and the connection is to be served as its listener's all the same.
        self._context = contextvars.copy_context()
        self._open: dict[asyncio.Task[None], Connection] = {}

    def accept(self, connection: Connection) -> None:
        """Serve a connection, in a task of its own."""
        task = asyncio.get_running_loop().create_task(
            self._run(connection), name=f"serve {connection.host}", context=self._context.copy()
        )
        self._open[task] = connection
        task.add_done_callback(self._open.pop)

    def stop(self) -> None:
        """Serve no more, at once: the process is gone."""
        for task in self._open:
            task.cancel()

    async def close(self) -> None:
        self._wires.unlisten(self)
        for connection in list(self._open.values()):
            await connection.close(GOING_AWAY)
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _run(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        finally:
            await connection.close()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
