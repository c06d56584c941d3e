"""Payloads to frames and back, without any I/O. The layouts are in ``docs/wire.md``.

Every frame but one begins with a kind. A *batch* holds small payloads whole, one after the other. A *head* opens one
payload of any size and holds its first bytes; the rest follows in *raw* frames, which have no header at all, so that
the bytes of a tensor go out as they lie in memory. A *grant* says how much more may be sent on a lane.

Small frames are fairer to other traffic on the machine's network, and were measured faster than giant ones.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from runtime.actors import Lane
from runtime.errors import ProtocolError
from runtime.wire.tensor import Buffer

CHUNK_BYTES = 192 * 1024
"""The most bytes of payloads in one frame."""
BATCH_HEADER = 16
HEAD_HEADER = 32
MAX_FRAME = HEAD_HEADER + CHUNK_BYTES
"""The largest frame of the protocol."""
MAX_BATCH = 64
"""The most payloads in a batch: no more than a busy actor handles in one turn of the loop."""
SMALL = 4096
"""The largest payload that is put into a batch. What is larger gains nothing by it."""
KEPT = 16 * 1024 * 1024
"""Bytes of memory for payloads of several frames that are kept for the next ones, for each lane of a link."""

_BATCH, _HEAD, _GRANT = 1, 2, 3
_BATCH_LAYOUT = struct.Struct("<IIQ")  # the kind, and three bytes that are zero
_HEAD_LAYOUT = struct.Struct("<B7xQQ8x")
_GRANT_LAYOUT = struct.Struct("<BB6xQQ")
_LENGTH = struct.Struct("<I")


class Grant(msgspec.Struct, frozen=True):
    """How much may be sent on a lane, counted from the beginning of the session."""

    messages: int
    size: int
    """Bytes of payloads."""


def grant_frame(lane: Lane, grant: Grant) -> bytes:
    """Return the frame that tells a grant. It travels on the control lane, whichever lane it is for."""
    return _GRANT_LAYOUT.pack(_GRANT, lane, grant.messages, grant.size)


def read_grant(frame: bytes) -> tuple[Lane, Grant] | None:
    """Return the grant in a frame; None if the frame is of another kind.

    Raises:
        ProtocolError: it is malformed.
    """
    if not frame or frame[0] != _GRANT:
        return None
    if len(frame) != _GRANT_LAYOUT.size or any(frame[2:8]) or frame[1] not in (Lane.CONTROL, Lane.BULK):
        raise ProtocolError("a grant is malformed")
    _, lane, messages, size = _GRANT_LAYOUT.unpack(frame)
    return Lane(lane), Grant(messages, size)


def batch_frame(sequence: int, payloads: Sequence[Buffer]) -> bytes:
    """Return one frame with small payloads, the first of which is number ``sequence`` of its lane."""
    pieces: list[Buffer] = [_BATCH_LAYOUT.pack(_BATCH, len(payloads), sequence)]
    for payload in payloads:
        pieces.append(_LENGTH.pack(len(payload)))
        pieces.append(payload)
    return b"".join(pieces)


def payload_frames(sequence: int, parts: Sequence[Buffer], size: int) -> Iterator[Buffer]:
    """Cut a payload, given in parts of ``size`` bytes in all, into frames. Each is made when it is asked for.

    A payload that fits is one frame. Of a larger one the raw frames are views of the parts, and are joined only where
    a part ends within them.
    """
    header = _HEAD_LAYOUT.pack(_HEAD, sequence, size)
    if size <= CHUNK_BYTES:
        yield b"".join([header, *parts])
        return
    pending: list[Buffer] = [header]
    room = CHUNK_BYTES
    for part in parts:
        view = memoryview(part)
        while len(view) >= room:
            yield b"".join([*pending, view[:room]]) if pending else view[:room]
            view = view[room:]
            pending = []
            room = CHUNK_BYTES
        if view:
            pending.append(view)
            room -= len(view)
    if pending:
        yield b"".join(pending)


Begin = Callable[[int, Sequence[int]], None]
"""Told of the payloads that a frame begins, by the number of the first and the size of each; it may refuse them."""


class Reassembler:
    """Puts the frames of one lane together again."""

    def __init__(self, limit: int, begin: Begin) -> None:
        """Refuse payloads of more than ``limit`` bytes. ``begin`` is called before anything is kept of a payload."""
        self._limit = limit
        self._begin = begin
        self._partial: bytearray | mmap.mmap | None = None
        self._buffers = _Buffers()
        self._total = 0
        self._received = 0

    @property
    def partial(self) -> bool:
        """Whether a payload has begun and is not complete: the next frame is a raw one."""
        return self._partial is not None

    def feed(self, frame: bytes) -> list[memoryview]:
        """Take the next frame; return the payloads that it completes.

        Raises:
            ProtocolError: the frame is malformed, a payload is too large, or it does not fit what came before.
        """
        if not 0 < len(frame) <= MAX_FRAME:
            raise ProtocolError(f"a frame has 1 to {MAX_FRAME} bytes, not {len(frame)}")
        view = memoryview(frame).toreadonly()
        if self._partial is not None:
            return self._append(self._partial, view)
        if frame[0] == _BATCH:
            return self._split(view)
        if frame[0] == _HEAD:
            return self._open(view)
        raise ProtocolError(f"a frame of kind {frame[0]} is not part of this protocol version")

    def _split(self, frame: memoryview) -> list[memoryview]:
        """Take a batch apart."""
        end = len(frame)
        if end < BATCH_HEADER:
            raise ProtocolError("the header of a batch is malformed")
        kind, count, sequence = _BATCH_LAYOUT.unpack_from(frame)
        if kind != _BATCH:
            raise ProtocolError("the header of a batch is malformed")
        if not 0 < count <= MAX_BATCH:
            raise ProtocolError(f"a batch has 1 to {MAX_BATCH} payloads, not {count}")
        start = BATCH_HEADER
        sizes = []
        payloads = []
        for _ in range(count):
            if start + _LENGTH.size > end:
                raise ProtocolError("a batch ends within a payload")
            size: int = _LENGTH.unpack_from(frame, start)[0]
            if not 0 < size <= self._limit:
                raise self._unfit(size)
            start += _LENGTH.size
            sizes.append(size)
            payloads.append(frame[start : start + size])
            start += size
        if start != end:
            raise ProtocolError(f"a batch of {end} bytes has payloads up to byte {start}")
        self._begin(sequence, sizes)
        return payloads

    def _open(self, frame: memoryview) -> list[memoryview]:
        """Begin a payload that may be larger than its first frame."""
        if len(frame) < HEAD_HEADER or any(frame[1:8]) or any(frame[24:32]):
            raise ProtocolError("the header of a payload is malformed")
        _, sequence, total = _HEAD_LAYOUT.unpack_from(frame)
        if not 0 < total <= self._limit:
            raise self._unfit(total)
        start = frame[HEAD_HEADER:]
        if len(start) > total:
            raise ProtocolError(f"a payload of {total} bytes came with {len(start)}")
        self._begin(sequence, (total,))
        if len(start) == total:
            return [start]
        self._partial = self._buffers.take(total)
        self._total, self._received = total, 0
        return self._append(self._partial, start)

    def _unfit(self, size: int) -> ProtocolError:
        if size:
            return ProtocolError(f"a message of {size} bytes is over the limit of {self._limit}")
        return ProtocolError("a payload is empty")

    def _append(self, partial: bytearray | mmap.mmap, chunk: memoryview) -> list[memoryview]:
        end = self._received + len(chunk)
        if end > self._total or len(chunk) > CHUNK_BYTES:
            raise ProtocolError(f"a payload of {self._total} bytes got a frame of {len(chunk)} at {self._received}")
        partial[self._received : end] = chunk
        self._received = end
        if end < self._total:
            return []
        self._partial = None
        return [self._buffers.finish(partial, end)]


class _Buffers:
    """Room for payloads that come in several frames, used again when nobody looks at what was in it.

    The system hands out fresh memory page by page as it is written, which was measured to cost more than the copying.
    New room grows with what is written: what a peer merely declares takes no memory.
    """

    def __init__(self) -> None:
        self._kept: deque[bytearray] = deque()
        self._size = 0

    def take(self, size: int) -> bytearray | mmap.mmap:
        """Return room for a payload of this size, which may be longer."""
        for index in reversed(range(len(self._kept))):  # the last one may still be in the processor's caches
            buffer = self._kept[index]
            if size <= len(buffer) <= 2 * size and _is_unused(buffer):
                del self._kept[index]
                self._size -= len(buffer)
                return buffer
        return bytearray() if size <= KEPT else mmap.mmap(-1, size)

    def finish(self, buffer: bytearray | mmap.mmap, size: int) -> memoryview:
        """Return the payload of this size, and keep the room for a later one."""
        view = memoryview(buffer)[:size].toreadonly()
        if isinstance(buffer, bytearray):
            self._kept.append(buffer)
            self._size += len(buffer)
            while self._size > KEPT:
                self._size -= len(self._kept.popleft())
        return view


def _is_unused(buffer: bytearray) -> bool:
    """Whether there is no view of it: only then may its length change."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    del buffer[-1]
    return True
