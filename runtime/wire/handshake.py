"""How two nodes convince each other before anything else is read, without any I/O.

The one that dials speaks first, on each of the two connections of a session::

    dialler                                  acceptor
    Hello(newest, oldest, lane, nonce,
          session, identity)           ->
                                       <-    Challenge(version, nonce)  or  Refusal(code, newest, oldest)
    Proof(mac)                         ->
                                       <-    Verdict(identity, code, mac)  or  Refusal(code, newest, oldest)

Each side speaks a range of versions; the acceptor chooses the newest that both speak. A mac is HMAC-SHA256 under the
cluster key over the role of its maker, the dialler's whole hello, the chosen version and the acceptor's nonce; the
acceptor's covers its own identity and its verdict too. Nonces make a replay useless, the role a reflection, the ranges
a downgrade. An acceptor tells a stranger its versions and nothing more: its name goes out, and its mac with it, only to
a dialler that has proved the key. Without a cluster key both sides use the empty one, which keeps strays out and nobody
else. The connection after the handshake is as private as the network, or its TLS.

The magic and the newest version of ``Hello``, the oldest from version 2 on, and the whole of ``Refusal`` are the same
in every version of the protocol. The layouts are in ``docs/wire.md``.
"""

from __future__ import annotations

import hmac
import secrets
from enum import IntEnum, StrEnum
from typing import Annotated, TypeVar

import msgspec

from runtime.actors import Lane
from runtime.errors import HandshakeRefused, ProtocolError

PROTOCOL_VERSION = 2
"""The newest version that this release speaks."""
OLDEST_VERSION = 2
"""The oldest; version 1, of release 0.1, had no credit."""
MAX_MESSAGE = 2048
"""Bytes of any message of the handshake."""

NODE_NAME = r"^[A-Za-z0-9._-]{1,63}\Z"
"""What a node may be called."""

_MAGIC = "mlx-actor-runtime"

_Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Mac = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Session = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Instance = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
_Name = Annotated[str, msgspec.Meta(pattern=NODE_NAME)]
_Host = Annotated[str, msgspec.Meta(max_length=300, pattern=r"^[!-~]*$")]


class Refusal(StrEnum):
    """Why a node does not take a connection."""

    VERSION = "version"
    KEY = "key"
    NAME = "name"
    """Another live node has the name."""
    SELF = "self"
    """The node has dialled itself."""
    DUPLICATE = "duplicate"
    """The two nodes are linked already."""
    FULL = "full"
    """The node has as many peers as it takes."""


LASTING = frozenset({Refusal.VERSION, Refusal.KEY, Refusal.NAME})
"""Refusals that a person has to do something about."""


class Refused(HandshakeRefused):
    """The handshake failed for a known reason."""

    def __init__(self, reason: Refusal, message: str, peer: Identity | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.peer = peer
        """Who the other side is, if it has proved the key."""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Who a node is."""

    node: _Name
    boot: int
    """Milliseconds since the epoch at its start."""
    instance: _Instance
    """Drawn at random at its start: no two lives of any node share it."""
    address: _Host
    """``host:port`` where it says it listens; empty if it does not."""


class Versions(msgspec.Struct, frozen=True):
    """A range of protocol versions."""

    oldest: int
    newest: int

    def common(self, other: Versions) -> int | None:
        """Return the newest version in both ranges, if there is one."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None

    def __str__(self) -> str:
        return f"version {self.newest}" if self.oldest == self.newest else f"versions {self.oldest} to {self.newest}"


SPOKEN = Versions(OLDEST_VERSION, PROTOCOL_VERSION)
"""What this release speaks."""


class _Prefix(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    newest: int


class _Ranged(msgspec.Struct, frozen=True, array_like=True):
    magic: str
    newest: int
    oldest: int


class _Hello(msgspec.Struct, frozen=True, array_like=True):
    # What later versions may add behind these fields is ignored, and covered by the mac only from their version on.
    magic: str
    newest: int
    oldest: int
    lane: Lane
    nonce: _Nonce
    session: _Session
    identity: Identity


class _Refusal(msgspec.Struct, frozen=True, array_like=True, tag=0):
    code: Annotated[str, msgspec.Meta(max_length=32)]
    newest: int
    oldest: int = 0
    """Missing in version 1."""


class _Challenge(msgspec.Struct, frozen=True, array_like=True, tag=1):
    version: int
    nonce: _Nonce


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag=2):
    mac: _Mac


class _Verdict(msgspec.Struct, frozen=True, array_like=True, tag=3):
    identity: Identity
    code: Annotated[str, msgspec.Meta(max_length=32)]
    """Empty if the connection is accepted."""
    mac: _Mac


_PREFIXED = msgspec.msgpack.Decoder(_Prefix)
_RANGED = msgspec.msgpack.Decoder(_Ranged)
_OPENED = msgspec.msgpack.Decoder(_Hello)
_PROVED = msgspec.msgpack.Decoder(_Proof)
_CHALLENGED: msgspec.msgpack.Decoder[_Challenge | _Refusal] = msgspec.msgpack.Decoder(_Challenge | _Refusal)
_CONCLUDED: msgspec.msgpack.Decoder[_Verdict | _Refusal] = msgspec.msgpack.Decoder(_Verdict | _Refusal)


class _Role(IntEnum):
    DIALLER = 0
    ACCEPTOR = 1


class Dialler:
    """The side that opened the connection. Its methods are called in the order they stand in."""

    def __init__(self, identity: Identity, key: bytes, lane: Lane, session: bytes, versions: Versions = SPOKEN) -> None:
        self.version = 0
        """The version that is spoken on the connection, once :meth:`prove` has returned."""
        self._key = key
        self._versions = versions
        self._hello = _Hello(_MAGIC, versions.newest, versions.oldest, lane, secrets.token_bytes(32), session, identity)
        self._nonce = b""

    def hello(self) -> bytes:
        """Return what to send first."""
        return msgspec.msgpack.encode(self._hello)

    def prove(self, payload: bytes) -> bytes:
        """Take the acceptor's challenge; return the proof.

        Raises:
            Refused: the acceptor speaks another version, or takes no more connections.
            ProtocolError: the payload is malformed.
        """
        message = _read(payload, _CHALLENGED)
        if isinstance(message, _Refusal):
            raise self._refused(message)
        if not self._versions.oldest <= message.version <= self._versions.newest:
            raise ProtocolError(f"the peer chose protocol version {message.version}, which it was not offered")
        self.version, self._nonce = message.version, message.nonce
        return msgspec.msgpack.encode(_Proof(_mac(self._key, _Role.DIALLER, self._hello, self.version, self._nonce)))

    def conclude(self, payload: bytes) -> Identity:
        """Take the acceptor's verdict; return who it is.

        Raises:
            Refused: it refuses, or did not prove the key.
            ProtocolError: the payload is malformed.
        """
        message = _read(payload, _CONCLUDED)
        if isinstance(message, _Refusal):
            raise self._refused(message)
        expected = _mac(
            self._key, _Role.ACCEPTOR, self._hello, self.version, self._nonce, message.identity, message.code
        )
        if not hmac.compare_digest(expected, message.mac):
            raise Refused(Refusal.KEY, KEY_TEXT)
        peer = message.identity
        match message.code:
            case "":
                return peer
            case Refusal.NAME:
                raise Refused(Refusal.NAME, name_text(self._hello.identity.node), peer)
            case Refusal.SELF:
                raise Refused(Refusal.SELF, "this address is the node's own", peer)
            case Refusal.DUPLICATE:
                raise Refused(Refusal.DUPLICATE, f"node {peer.node} is linked already", peer)
            case Refusal.FULL:
                raise Refused(Refusal.FULL, f"node {peer.node} has as many peers as it takes", peer)
            case code:
                raise ProtocolError(f"node {peer.node} refuses for a reason unknown to this version: {code!r}")

    def _refused(self, message: _Refusal) -> Exception:
        """Say why, in our own words: nothing that an unproven peer says reaches the log as text."""
        match message.code:
            case Refusal.VERSION:
                theirs = Versions(message.oldest or message.newest, message.newest)
                return Refused(Refusal.VERSION, version_text(theirs, self._versions))
            case Refusal.KEY:
                return Refused(Refusal.KEY, KEY_TEXT)
            case Refusal.FULL:
                return Refused(Refusal.FULL, "the peer takes no more connections for now")
            case _:
                return ProtocolError("the peer refuses for a reason unknown to this version")


class Acceptor:
    """The side that was dialled. Its methods are called in the order they stand in."""

    def __init__(self, identity: Identity, key: bytes, versions: Versions = SPOKEN) -> None:
        self.version = 0
        """The version that is spoken on the connection, once :meth:`challenge` has returned."""
        self._identity = identity
        self._key = key
        self._versions = versions
        self._nonce = secrets.token_bytes(32)
        self._hello: _Hello | None = None

    @property
    def peer(self) -> Identity:
        """Who dials, as it says; proven once :meth:`verify` has returned."""
        return self._opened().identity

    @property
    def lane(self) -> Lane:
        """The lane that the connection is for."""
        return self._opened().lane

    @property
    def session(self) -> bytes:
        """What the two connections of a session have in common."""
        return self._opened().session

    def challenge(self, payload: bytes) -> bytes:
        """Take the dialler's hello; return the challenge.

        Raises:
            Refused: the dialler speaks another version. Send :meth:`turn_away`.
            ProtocolError: the payload is malformed.
        """
        prefix = _read(payload, _PREFIXED)
        if prefix.magic != _MAGIC:
            raise ProtocolError("the peer speaks another protocol")
        # The third field of a hello of version 1 was another.
        oldest = _read(payload, _RANGED).oldest if prefix.newest > 1 else prefix.newest
        theirs = Versions(oldest, prefix.newest)
        version = self._versions.common(theirs)
        if version is None:
            raise Refused(Refusal.VERSION, version_text(theirs, self._versions))
        self._hello = _read(payload, _OPENED)
        self.version = version
        return msgspec.msgpack.encode(_Challenge(version, self._nonce))

    def verify(self, payload: bytes) -> Identity:
        """Take the dialler's proof; return who it is.

        Raises:
            Refused: it has another key. Send :meth:`turn_away`.
            ProtocolError: the payload is malformed.
        """
        message = _read(payload, _PROVED)
        if not hmac.compare_digest(
            _mac(self._key, _Role.DIALLER, self._opened(), self.version, self._nonce), message.mac
        ):
            raise Refused(Refusal.KEY, KEY_TEXT)
        return self.peer

    def verdict(self, refusal: Refusal | None = None) -> bytes:
        """Return what a dialler that has proved the key is told."""
        code = refusal.value if refusal else ""
        mac = _mac(self._key, _Role.ACCEPTOR, self._opened(), self.version, self._nonce, self._identity, code)
        return msgspec.msgpack.encode(_Verdict(self._identity, code, mac))

    def turn_away(self, refusal: Refusal) -> bytes:
        """Return what a dialler that has proved nothing is told."""
        return msgspec.msgpack.encode(_Refusal(refusal.value, self._versions.newest, self._versions.oldest))

    def _opened(self) -> _Hello:
        if self._hello is None:
            raise RuntimeError("the handshake has no hello yet")
        return self._hello


KEY_TEXT = "the cluster key does not match; set the same cluster.key on every node"


def version_text(theirs: Versions, ours: Versions) -> str:
    """Say that a peer speaks no protocol version that we do."""
    return f"the peer speaks protocol {theirs}, this node speaks {ours}; run the same release on every node"


def name_text(node: str) -> str:
    """Say that a name is taken."""
    return (
        f"two nodes are named {node}; give one of them another node.name "
        "(a node that was moved or killed a moment ago is let in again once its old links are found dead)"
    )


_Shape = TypeVar("_Shape")


def _read(payload: bytes, decoder: msgspec.msgpack.Decoder[_Shape]) -> _Shape:
    if len(payload) > MAX_MESSAGE:
        raise ProtocolError(f"a handshake message has at most {MAX_MESSAGE} bytes, not {len(payload)}")
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError("the peer's handshake is malformed") from error


def _mac(
    key: bytes,
    role: _Role,
    hello: _Hello,
    version: int,
    acceptor_nonce: bytes,
    acceptor: Identity | None = None,
    code: str = "",
) -> bytes:
    # msgpack is injective, so no two transcripts have the same bytes.
    transcript = msgspec.msgpack.encode((_MAGIC, "handshake", role, hello, version, acceptor_nonce, acceptor, code))
    return hmac.digest(key, transcript, "sha256")
