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
_NO_TENSORS = memoryview(b"")

_Address = tuple[str, str, int]


class UnknownMessage(ProtocolError):
    """A well-formed signal whose message this node has no type for: another version, or a plugin that is not here.

    The link is not at fault. ``ask_id`` is set if somebody waits for an answer.
    """

    def __init__(self, tag: str, ask_id: int | None) -> None:
        super().__init__(f"this node has no message type {tag!r}; do all nodes run the same version and plugins?")
        self.ask_id = ask_id


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    """The msgpack part of a payload; its fields, in their order, are the items of the array."""

    def signal(self, tensors: memoryview) -> Signal:
        """Return the signal, whose tensors lie in ``tensors``."""
        raise NotImplementedError


class _Tell(_Envelope, frozen=True, tag=0):
    target: _Address
    name: str
    message: Raw

    def signal(self, tensors: memoryview) -> Signal:
        return Tell(ActorRef(*self.target), _message(self.name, self.message, tensors, None))


class _Ask(_Envelope, frozen=True, tag=1):
    target: _Address
    name: str
    message: Raw
    id: int
    timeout_ms: int
    chain: tuple[tuple[_Address, int], ...] = ()

    def signal(self, tensors: memoryview) -> Signal:
        chain = tuple([Caller(ActorRef(*address), ask) for address, ask in self.chain]) if self.chain else ()
        message = _message(self.name, self.message, tensors, self.id)
        return Ask(ActorRef(*self.target), message, self.id, self.timeout_ms, chain)


class _Answer(_Envelope, frozen=True, tag=2):
    id: int
    name: str | None
    message: Raw

    def signal(self, tensors: memoryview) -> Signal:
        return Answer(self.id, None if self.name is None else _message(self.name, self.message, tensors, None))


class _Failure(_Envelope, frozen=True, tag=3):
    id: int
    code: str
    text: str

    def signal(self, tensors: memoryview) -> Signal:
        del tensors
        return Failure(self.id, self.code, self.text)


class _Watch(_Envelope, frozen=True, tag=4):
    target: _Address

    def signal(self, tensors: memoryview) -> Signal:
        del tensors
        return Watch(ActorRef(*self.target))


class _Unwatch(_Envelope, frozen=True, tag=5):
    target: _Address

    def signal(self, tensors: memoryview) -> Signal:
        del tensors
        return Unwatch(ActorRef(*self.target))


class _Gone(_Envelope, frozen=True, tag=6):
    target: _Address
    reason: str

    def signal(self, tensors: memoryview) -> Signal:
        del tensors
        return Gone(ActorRef(*self.target), self.reason)


class _Cancel(_Envelope, frozen=True, tag=7):
    id: int

    def signal(self, tensors: memoryview) -> Signal:
        del tensors
        return Cancel(self.id)


_decoder = msgspec.msgpack.Decoder(_Tell | _Ask | _Answer | _Failure | _Watch | _Unwatch | _Gone | _Cancel)
_encoder = msgspec.msgpack.Encoder()


def encode(signal: Signal) -> list[Buffer]:
    """Return the parts of the payload, to be sent one after the other. Tensors are views, not copies.

    Raises:
        TooLarge: the message is, not counting its tensors.
        TypeError: a field of the message is of a type that cannot travel.
    """
    tensors: list[Buffer] = []
    envelope = _encoder.encode(_to_envelope(signal, tensors))
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
    view = memoryview(payload)
    size = len(view)
    if size < _LENGTH.size:
        raise ProtocolError(f"a payload of {size} bytes is too short to hold a signal")
    length: int = _LENGTH.unpack_from(view)[0]
    end = _LENGTH.size + length
    if length > MAX_ENVELOPE or end > size:
        raise ProtocolError(f"a payload of {size} bytes claims an envelope of {length}")
    try:
        envelope: _Envelope = _decoder.decode(view[_LENGTH.size : end])
        return envelope.signal(view[end + _padding(end) :].toreadonly() if end < size else _NO_TENSORS)
    except UnknownMessage:
        raise
    except Exception as error:
        # Blanket, because what a peer sends must not choose what is raised here: msgspec raises its own errors,
        # UnicodeDecodeError and RecursionError, and a message type's own checks may raise anything.
        raise ProtocolError(f"a signal cannot be decoded: {error}") from error


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _to_envelope(signal: Signal, tensors: list[Buffer]) -> _Envelope:
    """Return the envelope of a signal, and put the tensors of its message aside. The common kinds come first."""
    match signal:
        case Tell():
            message = signal.message
            return _Tell(_address(signal.target), tag_of(message), _body(message, tensors))
        case Ask():
            message = signal.message
            chain = tuple([(_address(caller.ref), caller.ask) for caller in signal.chain]) if signal.chain else ()
            return _Ask(
                _address(signal.target), tag_of(message), _body(message, tensors), signal.id, signal.timeout_ms, chain
            )
        case Answer():
            value = signal.value
            if value is None:
                return _Answer(signal.id, None, _NIL)
            return _Answer(signal.id, tag_of(value), _body(value, tensors))
        case Cancel():
            return _Cancel(signal.id)
        case Failure():
            return _Failure(signal.id, signal.code, signal.text)
        case Watch():
            return _Watch(_address(signal.target))
        case Unwatch():
            return _Unwatch(_address(signal.target))
        case Gone():
            return _Gone(_address(signal.target), signal.reason)


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
        return _body_with_tensors(message, tensors)


def _body_with_tensors(message: Message, tensors: list[Buffer]) -> Raw:
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
    """Decode a message."""
    try:
        cls = message_type(tag)
    except UnknownTag:
        raise UnknownMessage(tag, ask_id) from None
    if not tensors:
        try:
            return _plain_decoder(cls).decode(body)
        except _Foreign:
            pass  # a tensor of no bytes
    return _message_with_tensors(cls, body, tensors)


def _message_with_tensors(cls: type[Message], body: Raw, tensors: memoryview) -> Message:
    def find(kind: type, value: Any) -> Any:
        if kind is not Tensor:
            raise TypeError(f"a {kind.__name__} cannot travel")
        dtype, shape, offset = msgspec.convert(value, tuple[str, tuple[int, ...], int])
        size = tensor_bytes(dtype, shape)
        if offset < 0 or offset + size > len(tensors):
            raise ValueError(f"a tensor at {offset} of {size} bytes lies outside the {len(tensors)} bytes received")
        return Tensor(dtype, shape, tensors[offset : offset + size])

    return msgspec.msgpack.decode(body, type=cls, dec_hook=find)
