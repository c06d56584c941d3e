"""The opening of connections: the handshake carried over them."""

from __future__ import annotations

from runtime.actors import Lane
from runtime.errors import ProtocolError
from runtime.wire.connection import Connection, ConnectionEnded
from runtime.wire.handshake import Acceptor, Dialler, Identity, Refusal, Refused

READY = b"ready"
"""What the node with the lower name says on the control lane once it has decided to use a session."""


async def introduce(
    connection: Connection,
    identity: Identity,
    key: bytes,
    lane: Lane,
    session: bytes,
    expected: Identity | None = None,
) -> Identity:
    """Carry out the dialler's side of the handshake; return who answered.

    Raises:
        Refused: the two do not agree.
        ProtocolError: the peer does not keep to the protocol, or is not the one expected.
    """
    side = Dialler(identity, key, lane, session)
    await connection.send(side.hello())
    await connection.send(side.prove(await connection.recv()))
    peer = side.conclude(await connection.recv())
    if expected is not None and peer != expected:
        raise ProtocolError("another node answered the second connection of the session")
    return peer


async def authenticate(connection: Connection, identity: Identity, key: bytes) -> Acceptor:
    """Carry out the acceptor's side up to the dialler's proof. The verdict is the caller's to send.

    Raises:
        Refused: the dialler is turned away, and knows why.
        ProtocolError: the peer does not keep to the protocol.
    """
    side = Acceptor(identity, key)
    try:
        await connection.send(side.challenge(await connection.recv()))
        side.verify(await connection.recv())
    except Refused as refusal:
        await connection.send(side.turn_away(refusal.reason))
        raise
    return side


async def await_ready(connection: Connection) -> None:
    """Wait for the other node's decision to use the session.

    Raises:
        Refused: it hung up, as it does when another session with this node came first.
        ProtocolError: it says something else.
    """
    try:
        word = await connection.recv()
    except ConnectionEnded as ended:
        raise Refused(Refusal.DUPLICATE, "the peer prefers another session with this node") from ended
    if word != READY:
        raise ProtocolError("the peer did not say that the session is ready")
