from __future__ import annotations

import contextlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.actors import ActorRef, Answer, Ask, Caller, Cancel, Failure, Gone, Signal, Tell, Unwatch, Watch
from runtime.errors import ProtocolError, TooLarge
from runtime.spi import LayerSpan
from runtime.wire import Tensor, decode, encode
from runtime.wire.codec import MAX_ENVELOPE, UnknownMessage
from tests.wire.messages import Double, Everything, Number

REF = ActorRef("node-a", "/models/1", 123456789)
RICH = Everything(
    "text",
    REF,
    LayerSpan(0, 3, 8),
    (Tensor("bfloat16", (3,), b"abcdef"), Tensor("float32", (0,), b"")),
    {"h": Tensor("uint8", (2, 2), b"wxyz")},
)
SIGNALS: list[Signal] = [
    Tell(REF, RICH),
    Ask(REF, Double(3), 77, 1500),
    Ask(REF, Double(3), 77, 1500, (Caller(REF, 2**62), Caller(ActorRef("b", "/x"), 1))),
    Cancel(77),
    Answer(77, Number(6)),
    Answer(78, RICH),
    Answer(79, None),
    Failure(80, "mailbox_full", "no room"),
    Watch(REF),
    Unwatch(REF),
    Gone(REF, "normal"),
]


def payload_of(signal: Signal) -> bytes:
    return b"".join(encode(signal))


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: type(signal).__name__)
def test_a_signal_survives_the_way(signal: Signal) -> None:
    assert decode(payload_of(signal)) == signal


@given(
    sizes=st.lists(st.integers(0, 70), max_size=6),
    text=st.text(max_size=40),
    maybe=st.booleans(),
)
def test_any_tensors_arrive_in_their_places(sizes: list[int], text: str, maybe: bool) -> None:
    tensors = tuple(Tensor("uint8", (size,), bytes([index + 1]) * size) for index, size in enumerate(sizes))
    message = Everything(text, REF, LayerSpan(1, 2, 3), tensors, {text: tensors[0]} if tensors else {}, None)
    if maybe and tensors:
        message = msgspec.structs.replace(message, maybe=tensors[-1])
    assert decode(payload_of(Tell(REF, message))) == Tell(REF, message)


def test_encoding_copies_no_tensor() -> None:
    source = bytearray(4096)
    parts = encode(Tell(REF, Everything("", REF, LayerSpan(0, 1, 1), (Tensor("uint8", (4096,), source),), {})))
    assert any(isinstance(part, memoryview) and part.obj is source for part in parts)


def test_a_decoded_tensor_is_an_aligned_view_into_the_payload() -> None:
    payload = payload_of(SIGNALS[0])
    signal = decode(payload)
    assert isinstance(signal, Tell)
    assert isinstance(signal.message, Everything)
    view = signal.message.named["h"].data
    assert view.obj is payload
    assert payload.index(b"wxyz") % 16 == 0


def test_a_message_that_no_module_defines_is_refused_by_its_name_and_names_the_ask() -> None:
    class Foreign(Double, frozen=True, tag="test.foreign-to-be-renamed"):
        pass

    payload = payload_of(Ask(REF, Foreign(1), 5, 10)).replace(b"to-be-renamed", b"it-is-renamed")
    with pytest.raises(UnknownMessage, match=r"no message type 'test.foreign-it-is-renamed'") as refused:
        decode(payload)
    assert refused.value.ask_id == 5


def test_a_message_too_large_for_an_envelope_is_refused_where_it_is_sent() -> None:
    with pytest.raises(TooLarge, match="can travel"):
        encode(Failure(1, "code", "x" * MAX_ENVELOPE))


def test_a_tensor_that_claims_bytes_outside_the_payload_is_refused() -> None:
    payload = payload_of(Tell(REF, RICH))
    with pytest.raises(ProtocolError, match="lies outside"):
        decode(payload[:-16])


def test_an_envelope_longer_than_its_payload_is_refused() -> None:
    with pytest.raises(ProtocolError, match="claims an envelope"):
        decode(b"\xff\xff\xff\xff1234")


@given(st.binary(max_size=200))
def test_junk_is_a_protocol_error_and_nothing_else(junk: bytes) -> None:
    for payload in (junk, len(junk).to_bytes(4, "little") + junk):
        with contextlib.suppress(ProtocolError):
            decode(payload)


@settings(max_examples=300)
@given(which=st.sampled_from(SIGNALS), seed=st.integers(0, 2**32))
def test_mutated_payloads_are_decoded_or_refused_and_nothing_else(which: Signal, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated, not a secret
    original = payload_of(which)
    for _ in range(25):
        payload = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            match chance.randint(0, 3):
                case 0:
                    payload[chance.randrange(len(payload))] = chance.randrange(256)
                case 1:
                    del payload[chance.randrange(len(payload)) :]
                case 2:
                    payload.insert(chance.randrange(len(payload) + 1), chance.randrange(256))
                case _:
                    at = chance.randrange(len(payload) + 1)
                    payload[at:at] = original[: chance.randrange(20)]
            payload = payload or bytearray(b"\0")
        with contextlib.suppress(ProtocolError):
            decode(bytes(payload))


def test_deep_nesting_is_a_protocol_error() -> None:
    body = b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        decode(len(body).to_bytes(4, "little") + body)
