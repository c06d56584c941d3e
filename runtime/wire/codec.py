"""Signals to bytes and back, without any I/O.

A payload is::

    envelope length   4 bytes, little-endian
    envelope          msgpack: an array whose first item says which signal it is
    padding           zeros up to a multiple of 16
    tensors           raw bytes of each, every one starting at a multiple of 16

A message inside an envelope is named by its stable tag. Where it has a tensor, the msgpack holds the element type,
the shape and the offset among the tensors' bytes, so that no tensor is ever copied into the envelope; a decoded
tensor is a view into the payload.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw

from runtime.actors import ActorRef, Message, UnknownTag, message_type, tag_of
from runtime.actors.signal import Answer, Ask, Caller, Cancel, Failure, Gone, Signal, Tell, Unwatch, Watch
from runtime.errors import ProtocolError, TooLarge
from runtime.wire.tensor import Buffer, Tensor, tensor_bytes

MAX_ENVELOPE = 16 * 1024 * 1024
"""Bytes of the msgpack part; what is larger belongs in a tensor."""

_ALIGNMENT = 16
_LENGTH = struct.Struct("<I")
_NIL = Raw(b"\xc0")

_Address = tuple[str, str, int]


class UnknownMessage(ProtocolError):
    """A well-formed signal whose message this node has no type for: another version, or a plugin that is not here.

    The link is not at fault. ``ask_id`` is set if somebody waits for an answer.
    """

    def __init__(self, tag: str, ask_id: int | None) -> None:
        super().__init__(f"this node has no message type {tag!r}; do all nodes run the same version and plugins?")
        self.ask_id = ask_id


class _Tell(msgspec.Struct, frozen=True, array_like=True, tag=0):
    target: _Address
    tag: str
    message: Raw


class _Ask(msgspec.Struct, frozen=True, array_like=True, tag=1):
    target: _Address
    tag: str
    message: Raw
    id: int
    timeout_ms: int
    chain: tuple[tuple[_Address, int], ...] = ()


class _Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    id: int
    tag: str | None
    message: Raw


class _Failure(msgspec.Struct, frozen=True, array_like=True, tag=3):
    id: int
    code: str
    text: str


class _Watch(msgspec.Struct, frozen=True, array_like=True, tag=4):
    target: _Address


class _Unwatch(msgspec.Struct, frozen=True, array_like=True, tag=5):
    target: _Address


class _Gone(msgspec.Struct, frozen=True, array_like=True, tag=6):
    target: _Address
    reason: str


class _Cancel(msgspec.Struct, frozen=True, array_like=True, tag=7):
    id: int


_Envelope = _Tell | _Ask | _Answer | _Failure | _Watch | _Unwatch | _Gone | _Cancel
_decoder: msgspec.msgpack.Decoder[_Envelope] = msgspec.msgpack.Decoder(_Envelope)


def encode(signal: Signal) -> list[Buffer]:
    """Return the parts of the payload, to be sent one after the other. Tensors are views, not copies.

    Raises:
        TooLarge: the message is, not counting its tensors.
        TypeError: a field of the message is of a type that cannot travel.
    """
    tensors: list[Buffer] = []
    envelope = msgspec.msgpack.encode(_to_envelope(signal, tensors))
    if len(envelope) > MAX_ENVELOPE:
        raise TooLarge(
            f"{type(signal).__name__} is {len(envelope)} bytes without its tensors; at most {MAX_ENVELOPE} can travel"
        )
    head = _LENGTH.pack(len(envelope)) + envelope
    return [head + bytes(_padding(len(head))), *tensors] if tensors else [head]


def decode(payload: Buffer) -> Signal:
    """Return the signal in a payload. Its tensors are read-only views that keep the payload alive.

    Raises:
        UnknownMessage: all is well but for a message that no imported module defines.
        ProtocolError: the payload is malformed.
    """
    view = memoryview(payload).toreadonly()
    if len(view) < _LENGTH.size:
        raise ProtocolError(f"a payload of {len(view)} bytes is too short to hold a signal")
    length: int = _LENGTH.unpack_from(view)[0]
    end = _LENGTH.size + length
    if length > MAX_ENVELOPE or end > len(view):
        raise ProtocolError(f"a payload of {len(view)} bytes claims an envelope of {length}")
    try:
        return _from_envelope(_decoder.decode(view[_LENGTH.size : end]), view[end + _padding(end) :])
    except UnknownMessage:
        raise
    except Exception as error:
        # Blanket, because what a peer sends must not choose what is raised here: msgspec raises its own errors,
        # UnicodeDecodeError and RecursionError, and a message type's own checks may raise anything.
        raise ProtocolError(f"a signal cannot be decoded: {error}") from error


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _to_envelope(signal: Signal, tensors: list[Buffer]) -> _Envelope:
    match signal:
        case Tell(target, message):
            return _Tell(_address(target), tag_of(message), _body(message, tensors))
        case Ask(target, message, ask_id, timeout_ms, chain):
            callers = tuple((_address(caller.ref), caller.ask) for caller in chain)
            return _Ask(_address(target), tag_of(message), _body(message, tensors), ask_id, timeout_ms, callers)
        case Cancel(ask_id):
            return _Cancel(ask_id)
        case Answer(ask_id, None):
            return _Answer(ask_id, None, _NIL)
        case Answer(ask_id, value):
            assert value is not None  # noqa: S101 - the case above took None; mypy does not see it
            return _Answer(ask_id, tag_of(value), _body(value, tensors))
        case Failure(ask_id, code, text):
            return _Failure(ask_id, code, text)
        case Watch(target):
            return _Watch(_address(target))
        case Unwatch(target):
            return _Unwatch(_address(target))
        case Gone(target, reason):
            return _Gone(_address(target), reason)


def _from_envelope(envelope: _Envelope, tensors: memoryview) -> Signal:
    match envelope:
        case _Tell(target, tag, body):
            return Tell(ActorRef(*target), _message(tag, body, tensors, None))
        case _Ask(target, tag, body, ask_id, timeout_ms, chain):
            callers = tuple(Caller(ActorRef(*address), ask) for address, ask in chain)
            return Ask(ActorRef(*target), _message(tag, body, tensors, ask_id), ask_id, timeout_ms, callers)
        case _Cancel(ask_id):
            return Cancel(ask_id)
        case _Answer(ask_id, None, _):
            return Answer(ask_id, None)
        case _Answer(ask_id, str(tag), body):
            return Answer(ask_id, _message(tag, body, tensors, None))
        case _Failure(ask_id, code, text):
            return Failure(ask_id, code, text)
        case _Watch(target):
            return Watch(ActorRef(*target))
        case _Unwatch(target):
            return Unwatch(ActorRef(*target))
        case _Gone(target, reason):
            return Gone(ActorRef(*target), reason)
        case _:
            raise TypeError(f"{envelope!r} is no envelope")


def _address(ref: ActorRef) -> _Address:
    return (ref.node, ref.path, ref.incarnation)


class _Foreign(Exception):
    """The message has something in it that msgspec does not know: a tensor."""


def _give_up(*args: object) -> Any:
    raise _Foreign


_plain_encoder = msgspec.msgpack.Encoder(enc_hook=_give_up)


@cache
def _plain_decoder(cls: type[Message]) -> msgspec.msgpack.Decoder[Message]:
    return msgspec.msgpack.Decoder(cls, dec_hook=_give_up)


def _body(message: Message, tensors: list[Buffer]) -> Raw:
    """Encode a message, putting its tensors aside."""
    try:
        return Raw(_plain_encoder.encode(message))  # most have none, and are spared the rest
    except _Foreign:
        pass
    offset = 0

    def put_aside(value: Any) -> Any:
        nonlocal offset
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(message).__name__} holds a {type(value).__name__}, which cannot travel")
        at = offset
        gap = _padding(value.nbytes)
        tensors.append(value.data)
        if gap:
            tensors.append(bytes(gap))
        offset += value.nbytes + gap
        return (value.dtype, value.shape, at)

    return Raw(msgspec.msgpack.encode(message, enc_hook=put_aside))


def _message(tag: str, body: Raw, tensors: memoryview, ask_id: int | None) -> Message:
    """Decode a message, finding its tensors again."""

    def find(kind: type, value: Any) -> Any:
        if kind is not Tensor:
            raise TypeError(f"a {kind.__name__} cannot travel")
        dtype, shape, offset = msgspec.convert(value, tuple[str, tuple[int, ...], int])
        size = tensor_bytes(dtype, shape)
        if offset < 0 or offset + size > len(tensors):
            raise ValueError(f"a tensor at {offset} of {size} bytes lies outside the {len(tensors)} bytes received")
        return Tensor(dtype, shape, tensors[offset : offset + size])

    try:
        cls = message_type(tag)
    except UnknownTag:
        raise UnknownMessage(tag, ask_id) from None
    if not tensors:
        try:
            return _plain_decoder(cls).decode(body)
        except _Foreign:
            pass  # a tensor of no bytes
    return msgspec.msgpack.decode(body, type=cls, dec_hook=find)
