from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ProtocolError
from runtime.wire.chunk import CHUNK_BYTES, HEADER_BYTES, MAX_FRAME, Reassembler, frames

LIMIT = 8 * CHUNK_BYTES


def header(index: int, total: int, kind: int = 1) -> bytes:
    return struct.pack("<B3xIQ", kind, index, total)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]), min_size=1, max_size=5)
)
def test_a_payload_is_the_same_after_being_cut_and_joined(sizes: list[int]) -> None:
    parts = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    whole = b"".join(parts) or b"x"
    cut = list(frames(parts if any(sizes) else [whole]))
    assert all(len(frame) <= MAX_FRAME for frame in cut)
    assert len(cut) == max(1, -(-len(whole) // CHUNK_BYTES))
    reassembler = Reassembler(LIMIT)
    results = [reassembler.feed(frame) for frame in cut]
    assert results[:-1] == [None] * (len(cut) - 1)
    assert results[-1] is not None
    assert bytes(results[-1]) == whole


def test_a_small_payload_is_one_frame_and_is_not_copied_on_receipt() -> None:
    (frame,) = frames([b"small"])
    payload = Reassembler(LIMIT).feed(frame)
    assert payload is not None
    assert payload.obj is frame


def test_payloads_follow_one_another() -> None:
    reassembler = Reassembler(LIMIT)
    for size in (CHUNK_BYTES * 2 + 5, 3, CHUNK_BYTES + 1):
        *_, last = [reassembler.feed(frame) for frame in frames([bytes(size)])]
        assert last is not None
        assert len(last) == size
        assert not reassembler.partial


def test_a_payload_over_the_limit_is_refused_at_its_first_frame() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        Reassembler(LIMIT).feed(header(0, LIMIT + 1) + bytes(CHUNK_BYTES))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "a frame has"),
        (header(0, 0), "a frame has"),
        (header(0, 5, kind=9) + b"12345", "not part of this protocol"),
        (header(1, 5) + b"12345", "where frame 0 was due"),
        (header(0, 6) + b"12345", "came as 5"),
        (header(0, 4) + b"12345", "came as 5"),
        (header(0, CHUNK_BYTES + 9) + b"12345", "got a frame of 5 at 0"),
        (bytes(MAX_FRAME + 1), "a frame has"),
    ],
)
def test_a_bad_first_frame_is_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Reassembler(LIMIT).feed(frame)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (header(0, CHUNK_BYTES + 5) + b"12345", "frame 0 came where frame 1 was due"),
        (header(2, CHUNK_BYTES + 5) + b"12345", "frame 2 came where frame 1 was due"),
        (header(1, CHUNK_BYTES + 6) + b"12345", "half way"),
        (header(1, CHUNK_BYTES + 5) + b"123456", "got a frame of 6"),
        (header(1, CHUNK_BYTES + 5) + b"1234", "got a frame of 4"),
    ],
)
def test_a_bad_later_frame_is_refused(frame: bytes, reason: str) -> None:
    reassembler = Reassembler(LIMIT)
    assert reassembler.feed(header(0, CHUNK_BYTES + 5) + bytes(CHUNK_BYTES)) is None
    with pytest.raises(ProtocolError, match=reason):
        reassembler.feed(frame)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, LIMIT + 9), st.binary(max_size=9)), max_size=8))
def test_any_frames_are_taken_or_refused_and_nothing_else(pieces: list[tuple[int, int, bytes]]) -> None:
    reassembler = Reassembler(LIMIT)
    for index, total, body in pieces:
        try:
            reassembler.feed(header(index, total) + body)
        except ProtocolError:
            return


def test_every_chunk_starts_aligned_in_its_frame() -> None:
    assert HEADER_BYTES % 16 == 0
    assert CHUNK_BYTES % 16 == 0
