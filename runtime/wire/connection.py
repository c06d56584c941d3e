"""The seam between the protocol and what carries it: binary frames in order, one way to dial and one to listen.

The WebSocket implementation is in :mod:`runtime.wire.websocket`, the one within a process in
:mod:`runtime.wire.memory`. Nothing else of the wire knows sockets.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from runtime.wire.tensor import Buffer

NORMAL = 1000
"""Close code: done with it. The codes are those of WebSockets (RFC 6455, 7.4.1) on every medium."""
GOING_AWAY = 1001
"""Close code of a node that shuts down."""
ABNORMAL = 1006
"""Never sent: what a connection that was lost without a goodbye counts as."""
POLICY = 1008
"""Close code for a peer that broke the rules."""
MAX_REASON = 120
"""Bytes of a close reason; WebSockets take 123."""


Take = Callable[[bytes], bool]
"""Takes a frame; see :meth:`Connection.deliver`."""


class ConnectionEnded(ConnectionError):
    """The connection is closed or lost. Raised by whatever is, or will be, waiting on it."""

    def __init__(self, code: int = ABNORMAL, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        """What the other side closed with; :data:`ABNORMAL` if it did not say goodbye."""
        self.reason = reason

    def __str__(self) -> str:
        """Say in words how the connection ended."""
        if self.code == ABNORMAL:
            return "the connection was lost"
        if self.code == GOING_AWAY:
            return "the node shut down"
        return f"the node closed the link: {self.reason or self.code}"


class Connection(ABC):
    """One connection to one peer: frames arrive whole, in order, and once, or the connection ends.

    One task may send while another receives; two must not do the same at once.
    """

    host: str
    """The host at the other end, as it is seen from here."""

    @abstractmethod
    async def send(self, frame: Buffer) -> None:
        """Hand over a frame; wait while the other side reads too slowly. The frame may be reused afterwards.

        Raises:
            ConnectionEnded: it is closed or lost.
        """

    @property
    def writable(self) -> bool:
        """Whether :meth:`send_now` may be called: the connection is open, and nothing sent before is still here."""
        return False

    def send_now(self, frame: Buffer) -> None:
        """Hand over a frame at once; only where :attr:`writable`, and only while nobody is in :meth:`send`."""
        raise NotImplementedError(f"{type(self).__name__} only sends in its own time")

    @abstractmethod
    async def recv(self) -> bytes:
        """Return the next frame.

        Raises:
            ConnectionEnded: it is closed or lost, and every frame that came before has been returned.
            ProtocolError: what came is no binary frame, or is larger than frames are.
        """

    async def deliver(self, take: Take) -> None:
        """Hand every frame to ``take`` when it arrives, until the connection ends; nothing may be in :meth:`recv`.

        ``take`` says whether the next frame, where it is here already, may follow within the same turn of the event
        loop. What ``take`` raises is raised here.

        Raises:
            ConnectionEnded: it is closed or lost, and every frame that came before has been handed over.
            ProtocolError: what came is no binary frame, or is larger than frames are.
        """
        while True:
            if not take(await self.recv()):
                await asyncio.sleep(0)

    @abstractmethod
    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye and wait, for as long as the medium's patience lasts, for the other side to have done so.

        ``reason`` is cut to :data:`MAX_REASON` bytes. Closing twice is not an error.
        """

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the connection is closed or lost, by whomever."""


class Listener(ABC):
    """Accepts connections until it is closed."""

    port: int
    """The port that is listened on."""

    @abstractmethod
    async def close(self) -> None:
        """Accept no more, close the connections that were accepted and are open, and wait for those who serve them."""


Serve = Callable[[Connection], Awaitable[None]]
"""Serves an accepted connection from its opening to its end."""
Admit = Callable[[str], bool]
"""Says whether one more connection from this host is taken."""


class Medium(ABC):
    """What a node dials and listens with."""

    @abstractmethod
    async def dial(self, host: str, port: int) -> Connection:
        """Connect to whoever listens there. The caller bounds the time it may take.

        Raises:
            OSError: nobody does, or it cannot be reached.
            ProtocolError: who listens there speaks something else, or takes no connections now.
        """

    @abstractmethod
    async def listen(self, host: str, port: int, serve: Serve, admit: Admit) -> Listener:
        """Accept connections; port 0 takes a free one. A connection is closed when ``serve`` returns.

        Raises:
            ConfigError: the address cannot be listened on.
        """


def cut_reason(reason: str) -> str:
    """Return as much of a close reason as fits."""
    return reason.encode()[:MAX_REASON].decode(errors="ignore")
