from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import Lane
from runtime.errors import ProtocolError
from runtime.wire.frame import (
    CHUNK_BYTES,
    HEAD_HEADER,
    KEPT,
    MAX_BATCH,
    MAX_FRAME,
    Grant,
    Reassembler,
    batch_frame,
    grant_frame,
    payload_frames,
    read_grant,
)

LIMIT = 8 * CHUNK_BYTES


def head(sequence: int, total: int) -> bytes:
    return struct.pack("<B7xQQ8x", 2, sequence, total)


def batch(count: int, rest: bytes = b"") -> bytes:
    return struct.pack("<B3xIQ", 1, count, 0) + rest


class Begun(list[tuple[int, tuple[int, ...]]]):
    """What a reassembler said was begun."""

    def __call__(self, sequence: int, sizes: Sequence[int]) -> None:
        self.append((sequence, tuple(sizes)))


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]), min_size=1, max_size=5)
)
def test_a_payload_is_the_same_after_being_cut_and_joined(sizes: list[int]) -> None:
    parts = [bytes([index + 1]) * size for index, size in enumerate([*sizes, 1])]
    whole = b"".join(parts)
    cut = [bytes(frame) for frame in payload_frames(7, parts, len(whole))]
    assert all(len(frame) <= MAX_FRAME for frame in cut)
    begun = Begun()
    reassembler = Reassembler(LIMIT, begun)
    results = [reassembler.feed(frame) for frame in cut]
    assert begun == [(7, (len(whole),))]
    assert results[:-1] == [[]] * (len(cut) - 1)
    assert [bytes(payload) for payload in results[-1]] == [whole]
    assert not reassembler.partial


def test_the_bytes_of_a_tensor_go_out_as_they_lie_in_memory() -> None:
    tensor = bytearray(4 * CHUNK_BYTES)
    first, *raw = payload_frames(0, [b"envelope", tensor], 8 + len(tensor))
    assert len(first) == MAX_FRAME
    assert all(isinstance(frame, memoryview) and frame.obj is tensor for frame in raw[:-1])


def test_small_payloads_share_a_frame_and_are_not_copied_on_receipt() -> None:
    frame = batch_frame(3, [b"one", b"two", b"three"])
    begun = Begun()
    payloads = Reassembler(LIMIT, begun).feed(frame)
    assert begun == [(3, (3, 3, 5))]
    assert payloads == [b"one", b"two", b"three"]
    assert all(payload.obj is frame for payload in payloads)


def test_a_payload_over_the_limit_is_refused_at_its_first_frame() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        Reassembler(LIMIT, Begun()).feed(head(0, LIMIT + 1) + bytes(CHUNK_BYTES))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "a frame has"),
        (bytes(MAX_FRAME + 1), "a frame has"),
        (b"\x09", "kind 9"),
        (b"\x03", "kind 3"),
        (head(0, 5)[:-1], "malformed"),
        (b"\x02\x01" + head(0, 5)[2:], "malformed"),
        (head(0, 0), "empty"),
        (head(0, 4) + b"12345", "came with 5"),
        (batch(1)[:-1], "malformed"),
        (b"\x01\x01" + batch(1)[2:], "malformed"),
        (batch(0), "1 to"),
        (batch(MAX_BATCH + 1), "1 to"),
        (batch(1), "ends within"),
        (batch(1, b"\x05\0\0\0"), "up to byte"),
        (batch(1, b"\0\0\0\0"), "empty"),
        (batch(1, b"\x01\0\0\0ab"), "up to byte"),
        (batch(1, b"\xff\xff\xff\xff"), "over the limit"),
    ],
)
def test_a_malformed_frame_is_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Reassembler(LIMIT, Begun()).feed(frame)


@pytest.mark.parametrize("chunk", [bytes(6), bytes(CHUNK_BYTES + 1)])
def test_a_raw_frame_that_does_not_fit_is_refused(chunk: bytes) -> None:
    reassembler = Reassembler(LIMIT, Begun())
    assert reassembler.feed(head(0, CHUNK_BYTES + 5) + bytes(CHUNK_BYTES)) == []
    with pytest.raises(ProtocolError, match="got a frame of"):
        reassembler.feed(chunk)


def feed_all(reassembler: Reassembler, payload: bytes) -> memoryview:
    """Cut a payload, put it together again, and return it."""
    (whole,) = [
        whole for frame in payload_frames(0, [payload], len(payload)) for whole in reassembler.feed(bytes(frame))
    ]
    return whole


def test_what_was_received_stays_as_it_is_while_somebody_looks_at_it() -> None:
    reassembler = Reassembler(LIMIT, Begun())
    size = 3 * CHUNK_BYTES
    kept = [feed_all(reassembler, bytes([number]) * size)[number : size - number] for number in range(8)]
    assert all(bytes(view) == bytes([number]) * (size - 2 * number) for number, view in enumerate(kept))
    assert all(view.readonly for view in kept)


def test_memory_is_used_again_once_nobody_looks_at_it() -> None:
    reassembler = Reassembler(LIMIT, Begun())
    memory = feed_all(reassembler, b"a" * (3 * CHUNK_BYTES)).obj
    again = feed_all(reassembler, b"b" * (2 * CHUNK_BYTES))
    assert again.obj is memory
    assert bytes(again) == b"b" * (2 * CHUNK_BYTES)


def test_the_memory_that_is_kept_is_bounded_and_none_is_taken_for_what_is_only_declared() -> None:
    payload = bytes(KEPT // 2)
    reassembler = Reassembler(8 * KEPT, Begun())
    tracemalloc.start()
    try:
        kept = [feed_all(reassembler, payload) for _ in range(5)]
        assert tracemalloc.get_traced_memory()[0] > 5 * len(payload)
        kept.clear()
        assert tracemalloc.get_traced_memory()[0] < KEPT * 1.3
        before = tracemalloc.get_traced_memory()[0]
        another = Reassembler(8 * KEPT, Begun())
        assert another.feed(head(0, KEPT) + bytes(CHUNK_BYTES)) == []
        assert tracemalloc.get_traced_memory()[0] < before + 4 * CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_a_grant_is_read_back_and_a_malformed_one_refused() -> None:
    frame = grant_frame(Lane.BULK, Grant(3, 2**63))
    assert read_grant(frame) == (Lane.BULK, Grant(3, 2**63))
    assert read_grant(batch_frame(0, [b"x"])) is None
    for wrong in (frame[:-1], frame + b"x", b"\x03\x02" + frame[2:], b"\x03\x01\x01" + frame[3:]):
        with pytest.raises(ProtocolError, match="a grant is malformed"):
            read_grant(wrong)


def test_the_header_keeps_tensors_aligned() -> None:
    assert HEAD_HEADER % 16 == CHUNK_BYTES % 16 == 0
