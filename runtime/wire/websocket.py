"""Connections as WebSockets: sockets, TLS, and the library that speaks RFC 6455."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from asyncio import SelectorEventLoop
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from loguru import logger
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection as Socket
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, Side, State
from websockets.typing import Subprotocol

from runtime.errors import ConfigError, ProtocolError
from runtime.wire.address import format_address
from runtime.wire.connection import (
    ABNORMAL,
    NORMAL,
    Admit,
    Connection,
    ConnectionEnded,
    Listener,
    Medium,
    Serve,
    Take,
    cut_reason,
)
from runtime.wire.frame import MAX_FRAME
from runtime.wire.inbox import Inbox
from runtime.wire.limits import Limits
from runtime.wire.rfc6455 import MessageReader, MessageWriter
from runtime.wire.tensor import Buffer

SUBPROTOCOL = Subprotocol("mlx-actor-runtime")

MAX_FRAGMENTS = 256
"""Fragments that a frame may be cut into on its way: the largest frame, a kilobyte at a time."""

HEAD_END = b"\r\n\r\n"
"""What the head of an HTTP message ends with; those that open a WebSocket have nothing behind it."""

ACCEPT_TURNS = 2
"""Turns of asyncio's event loop from a socket that was accepted to the call of its protocol."""

_Wrap = Callable[[ServerConnection], Awaitable[None]]
_Screen = Callable[[ServerConnection, Request], Response | None]


class _ToLoguru(logging.Handler):
    """Puts what the WebSocket library has to say among our debug lines, without its tracebacks.

    It logs an error with a stack for every port scan; what matters to an operator is logged here in our own words.
    """

    def emit(self, record: logging.LogRecord) -> None:
        cause = f": {record.exc_info[1]}" if record.exc_info else ""
        logger.debug("websockets: {}{}", record.getMessage(), cause)


_library_logger = logging.Logger("runtime.wire.websockets", level=logging.INFO)
_library_logger.addHandler(_ToLoguru())


class WebSockets(Medium):
    """WebSockets over TCP, or over TLS where contexts are given."""

    def __init__(
        self,
        limits: Limits | None = None,
        server_tls: ssl.SSLContext | None = None,
        client_tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._server_tls = server_tls
        self._client_tls = client_tls

    async def dial(self, host: str, port: int) -> Connection:
        try:
            socket = await connect(
                f"{'wss' if self._client_tls else 'ws'}://{format_address(host, port)}/",
                subprotocols=[SUBPROTOCOL],
                compression=None,
                proxy=None,  # nodes reach each other directly; the environment's HTTP proxy is not meant for this
                user_agent_header=None,
                open_timeout=self._limits.handshake,
                ping_interval=None,
                close_timeout=self._limits.close,
                max_size=MAX_FRAME,
                logger=_library_logger,
                create_connection=_ClientSocket,
                ssl=self._client_tls,
            )
        except WebSocketException as error:
            raise ProtocolError(str(error) or type(error).__name__) from error
        return WebSocketConnection(cast(_Socket, socket))

    async def listen(self, host: str, port: int, serve: Serve, admit: Admit) -> Listener:
        async def wrap(socket: ServerConnection) -> None:
            await serve(WebSocketConnection(cast(_Socket, socket)))

        def screen(socket: ServerConnection, request: Request) -> Response | None:
            del request
            if admit(_host_of(socket)):
                return None
            return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections from this host\n")

        accepted: set[_ServerSocket] = set()
        return _WebSocketListener(await self._serve(wrap, host, port, screen, accepted), accepted)

    async def _serve(self, wrap: _Wrap, host: str, port: int, screen: _Screen, accepted: set[_ServerSocket]) -> Server:
        try:
            return await serve(
                wrap,
                host or None,
                port,
                # A browser always sends its origin: no web page gets to speak to a cluster port, key or no key.
                origins=[None],
                subprotocols=[SUBPROTOCOL],
                compression=None,
                process_request=screen,
                server_header=None,
                open_timeout=self._limits.handshake,
                # A full receive queue also stops the reading of pongs, so a library ping would cut off a busy peer.
                ping_interval=None,
                close_timeout=self._limits.close,
                max_size=MAX_FRAME,
                logger=_library_logger,
                # The library does no more with the class than call it.
                create_connection=cast("type[ServerConnection]", partial(_ServerSocket, accepted=accepted)),
                ssl=self._server_tls,
            )
        except OSError as error:
            address = format_address(host, port)
            if error.errno == errno.EADDRINUSE:
                message = (
                    f"cluster.listen: {address} is in use by another program, or by another node; choose another port"
                )
            else:
                message = f"cluster.listen: this machine cannot listen on {address}: {error.strerror or error}"
            raise ConfigError(message, param="cluster.listen") from error


class _Socket(Socket):
    """Puts what arrives into an :class:`Inbox`, from where it is taken without a task that waits for each frame."""

    inbox: Inbox
    writer: MessageWriter
    _fragments: list[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.inbox = Inbox(self.transport.pause_reading, self.transport.resume_reading)
        self.writer = MessageWriter(masks=self.protocol.side is Side.CLIENT)
        self.transport.set_protocol(_Arrivals(self))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.inbox.end(_ended(self.close_exc))

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._take(event)
        else:
            super().process_event(event)

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self.inbox.end(ProtocolError("a text frame came; every frame of the protocol is binary"))
        elif self._fragments is None and frame.fin:
            self.inbox.put(cast(bytes, frame.data))  # or a bytearray, which serves as well
        else:
            self._take_fragment(frame)

    def _take_fragment(self, frame: Frame) -> None:
        """Put together what a proxy may have cut. The library sees to the order, and to the size of the whole."""
        if self._fragments is None:
            self._fragments = []
        self._fragments.append(bytes(frame.data))
        if len(self._fragments) > MAX_FRAGMENTS:
            # Empty ones count for nothing in the size of the whole, and there would be no end to them.
            self._fragments = None
            self.inbox.end(ProtocolError(f"a frame came in more than {MAX_FRAGMENTS} fragments"))
            self.transport.abort()
        elif frame.fin:
            self.inbox.put(b"".join(self._fragments))
            self._fragments = None


class _Arrivals(asyncio.BufferedProtocol):
    """What a transport delivers to: messages go straight to a socket's inbox, and all the rest to the socket."""

    def __init__(self, socket: _Socket) -> None:
        self._socket = socket
        self._inbox = socket.inbox
        self._reader = MessageReader(
            masked=socket.protocol.side is Side.SERVER, largest=MAX_FRAME, take=self._inbox.put, leave=self._leave
        )
        self._opening: bytes | None = b""
        """The last bytes that came, until the connection is open; then None."""

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._opening is not None and self._socket.state is State.OPEN:
            if self._opening == HEAD_END:
                self._reader.begin()
            # Otherwise the peer did not wait for the end of the opening, and the library has begun to read frames.
            self._opening = None
        self._reader.arrived(nbytes)
        self._inbox.pump()

    def _leave(self, data: bytes) -> None:
        self._socket.data_received(data)
        if self._opening is not None:
            self._opening = (self._opening + data)[-len(HEAD_END) :]
        elif self._socket.state is not State.OPEN:
            self._reader.stop()

    def eof_received(self) -> None:
        self._socket.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket.connection_lost(exc)

    def pause_writing(self) -> None:
        self._socket.pause_writing()

    def resume_writing(self) -> None:
        self._socket.resume_writing()


class _ClientSocket(_Socket, ClientConnection):
    pass


class _ServerSocket(_Socket, ServerConnection):
    """One that was accepted; while its transport is open it is in ``accepted``."""

    def __init__(self, *arguments: Any, accepted: set[_ServerSocket], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._accepted.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._accepted.discard(self)


class WebSocketConnection(Connection):
    """A WebSocket as a connection of the protocol."""

    def __init__(self, socket: _Socket) -> None:
        self.host = _host_of(socket)
        self._socket = socket

    async def send(self, frame: Buffer) -> None:
        socket = self._socket
        while socket.paused and socket.state is State.OPEN:
            with suppress(OSError):  # the connection is lost, and no longer open
                await socket.drain()
        if socket.state is State.OPEN:
            self.send_now(frame)
            return
        try:
            await socket.send(frame)
        except ConnectionClosed as closed:
            raise _ended(closed) from closed

    @property
    def writable(self) -> bool:
        return self._socket.state is State.OPEN and not self._socket.transport.get_write_buffer_size()

    def send_now(self, frame: Buffer) -> None:
        self._socket.transport.write(self._socket.writer.frame(frame))

    async def recv(self) -> bytes:
        return await self._socket.inbox.recv()

    async def deliver(self, take: Take) -> None:
        await self._socket.inbox.deliver(take)

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        await self._socket.close(code, cut_reason(reason))

    async def wait_closed(self) -> None:
        await self._socket.wait_closed()


class _WebSocketListener(Listener):
    def __init__(self, server: Server, accepted: set[_ServerSocket]) -> None:
        self._server = server
        self._accepted = accepted
        self.port: int = next(iter(server.sockets)).getsockname()[1]

    async def close(self) -> None:
        await self._accept_no_more()
        self._server.close()
        for socket in self._accepted:
            if socket.state is State.CONNECTING:  # the library would wait for its opening to end or time out
                socket.transport.abort()
        await self._server.wait_closed()

    async def _accept_no_more(self) -> None:
        """Leave new connections to the kernel, and let those that asyncio is accepting become ours.

        If its server closes meanwhile, asyncio's selector event loop forgets the socket that it has just accepted, and
        nobody closes it (https://github.com/python/cpython/issues/109564, open as of CPython 3.14). uvloop accepts a
        connection in one go. One whose TLS handshake is not over is not ours yet; its own time limit ends it.
        """
        loop = asyncio.get_running_loop()
        if isinstance(loop, SelectorEventLoop):
            for listening in self._server.sockets:
                loop.remove_reader(listening.fileno())
            for _ in range(ACCEPT_TURNS):
                await asyncio.sleep(0)


def _ended(closed: ConnectionClosed) -> ConnectionEnded:
    close = closed.rcvd
    return ConnectionEnded(ABNORMAL) if close is None else ConnectionEnded(close.code, close.reason)


def _host_of(socket: Socket) -> str:
    address = socket.remote_address
    return str(address[0]) if isinstance(address, tuple) else ""
