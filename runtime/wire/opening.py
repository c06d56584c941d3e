"""The opening of connections: sockets, TLS, and the handshake carried over them."""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from loguru import logger
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from runtime.actors import Lane
from runtime.errors import ConfigError, ProtocolError
from runtime.wire.address import format_address
from runtime.wire.chunk import MAX_FRAME
from runtime.wire.handshake import Acceptor, Dialler, Identity, Refusal, Refused
from runtime.wire.limits import Limits

SUBPROTOCOL = Subprotocol("mlx-actor-runtime")
READY = b"ready"
"""What the node with the lower name says on the control lane once it has decided to use a session."""


class _ToLoguru(logging.Handler):
    """Puts what the WebSocket library has to say among our debug lines, without its tracebacks.

    It logs an error with a stack for every port scan; what matters to an operator is logged here in our own words.
    """

    def emit(self, record: logging.LogRecord) -> None:
        cause = f": {record.exc_info[1]}" if record.exc_info else ""
        logger.debug("websockets: {}{}", record.getMessage(), cause)


_library_logger = logging.Logger("runtime.wire.websockets", level=logging.INFO)
_library_logger.addHandler(_ToLoguru())


async def listen(
    handler: Callable[[ServerConnection], Awaitable[None]],
    host: str,
    port: int,
    limits: Limits,
    admit: Callable[[ServerConnection], bool],
    tls: ssl.SSLContext | None,
) -> Server:
    """Start to accept connections. ``admit`` says whether one more is taken.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def screen(connection: ServerConnection, request: Request) -> Response | None:
        del request
        if admit(connection):
            return None
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections from this host\n")

    try:
        return await serve(
            handler,
            host or None,
            port,
            # A browser always sends its origin: no web page gets to speak to a cluster port, key or no key.
            origins=[None],
            subprotocols=[SUBPROTOCOL],
            compression=None,
            process_request=screen,
            server_header=None,
            open_timeout=limits.handshake,
            # A full receive queue also stops the reading of pongs, so a library ping would cut off a busy peer.
            ping_interval=None,
            close_timeout=limits.close,
            max_size=MAX_FRAME,
            logger=_library_logger,
            ssl=tls,
        )
    except OSError as error:
        address = format_address(host, port)
        if error.errno == errno.EADDRINUSE:
            message = f"cluster.listen: {address} is in use by another program, or by another node; choose another port"
        else:
            message = f"cluster.listen: this machine cannot listen on {address}: {error.strerror or error}"
        raise ConfigError(message, param="cluster.listen") from error


async def open_socket(host: str, port: int, limits: Limits, tls: ssl.SSLContext | None) -> ClientConnection:
    """Connect to a node."""
    return await connect(
        f"{'wss' if tls else 'ws'}://{format_address(host, port)}/",
        subprotocols=[SUBPROTOCOL],
        compression=None,
        proxy=None,  # nodes reach each other directly; the environment's HTTP proxy is not meant for this
        user_agent_header=None,
        open_timeout=limits.handshake,
        ping_interval=None,
        close_timeout=limits.close,
        max_size=MAX_FRAME,
        logger=_library_logger,
        ssl=tls,
    )


async def introduce(
    socket: Connection, identity: Identity, key: bytes, lane: Lane, session: bytes, expected: Identity | None = None
) -> Identity:
    """Carry out the dialler's side of the handshake; return who answered.

    Raises:
        Refused: the two do not agree.
        ProtocolError: the peer does not keep to the protocol, or is not the one expected.
    """
    side = Dialler(identity, key, lane, session)
    await socket.send(side.hello())
    await socket.send(side.prove(await receive(socket)))
    peer = side.conclude(await receive(socket))
    if expected is not None and peer != expected:
        raise ProtocolError("another node answered the second connection of the session")
    return peer


async def authenticate(socket: Connection, identity: Identity, key: bytes) -> Acceptor:
    """Carry out the acceptor's side up to the dialler's proof. The verdict is the caller's to send.

    Raises:
        Refused: the dialler is turned away, and knows why.
        ProtocolError: the peer does not keep to the protocol.
    """
    side = Acceptor(identity, key)
    try:
        await socket.send(side.challenge(await receive(socket)))
        side.verify(await receive(socket))
    except Refused as refusal:
        await socket.send(side.turn_away(refusal.reason))
        raise
    return side


async def await_ready(socket: Connection) -> None:
    """Wait for the other node's decision to use the session.

    Raises:
        Refused: it hung up, as it does when another session with this node came first.
        ProtocolError: it says something else.
    """
    try:
        word = await receive(socket)
    except ConnectionClosed as error:
        raise Refused(Refusal.DUPLICATE, "the peer prefers another session with this node") from error
    if word != READY:
        raise ProtocolError("the peer did not say that the session is ready")


async def receive(socket: Connection) -> bytes:
    """Return the next binary message.

    Raises:
        ProtocolError: a text message came.
    """
    message = await socket.recv()
    if isinstance(message, str):
        raise ProtocolError("a text frame came; every frame of the protocol is binary")
    return message


def host_of(socket: Connection) -> str:
    """Return the host at the other end."""
    address = socket.remote_address
    return str(address[0]) if isinstance(address, tuple) else ""
