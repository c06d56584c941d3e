"""Large payloads in small frames, and back, without any I/O.

Every frame is one WebSocket message: a header of 16 bytes (little-endian) and at most 192 KiB of the payload::

    kind      1 byte    1: a frame of a payload
    reserved  3 bytes   zero
    index     4 bytes   of this frame among those of its payload
    total     8 bytes   size of the whole payload

The frames of a payload follow one another on their lane. Small frames are fairer to other traffic on the machine's
network, and were measured faster than giant ones.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

from runtime.errors import ProtocolError
from runtime.wire.tensor import Buffer

CHUNK_BYTES = 192 * 1024
HEADER_BYTES = 16
MAX_FRAME = HEADER_BYTES + CHUNK_BYTES
"""The largest WebSocket message of the protocol."""

_PAYLOAD = 1
_HEADER = struct.Struct("<B3xIQ")


def frames(parts: Sequence[Buffer]) -> Iterator[bytes]:
    """Cut a payload, given in parts, into frames. Each is made when it is asked for."""
    total = sum(memoryview(part).nbytes for part in parts)
    index = 0
    pending: list[Buffer] = [_HEADER.pack(_PAYLOAD, 0, total)]
    room = CHUNK_BYTES
    for part in parts:
        view = memoryview(part)
        while len(view) > room:
            yield b"".join([*pending, view[:room]])
            view = view[room:]
            index += 1
            pending = [_HEADER.pack(_PAYLOAD, index, total)]
            room = CHUNK_BYTES
        pending.append(view)
        room -= len(view)
    yield b"".join(pending)


class Reassembler:
    """Puts the frames of one lane together again."""

    def __init__(self, limit: int) -> None:
        """Refuse payloads of more than ``limit`` bytes."""
        self._limit = limit
        self._partial: mmap.mmap | None = None
        self._total = 0
        self._received = 0
        self._next = 0

    @property
    def partial(self) -> bool:
        """Whether a payload has begun and is not complete."""
        return self._partial is not None

    def feed(self, frame: bytes) -> memoryview | None:
        """Take the next frame; return the payload when it is complete.

        Raises:
            ProtocolError: the frame is malformed, out of order, or belongs to a payload that is too large.
        """
        if not HEADER_BYTES < len(frame) <= MAX_FRAME:
            raise ProtocolError(f"a frame has {HEADER_BYTES + 1} to {MAX_FRAME} bytes, not {len(frame)}")
        kind, index, total = _HEADER.unpack_from(frame)
        if kind != _PAYLOAD or any(frame[1:4]):
            raise ProtocolError(f"a frame of kind {frame[:4].hex()} is not part of this protocol version")
        chunk = memoryview(frame)[HEADER_BYTES:]
        if index != self._next:
            raise ProtocolError(f"frame {index} came where frame {self._next} was due")
        if self._partial is None:
            if total > self._limit:
                raise ProtocolError(f"a message of {total} bytes is over the limit of {self._limit}")
            if total <= CHUNK_BYTES:
                return self._complete(chunk, total)
            # Anonymous memory is not touched before data arrives: a bytearray of 1 GiB takes seconds to zero, and
            # would let a peer take the memory by merely declaring a size.
            self._partial = mmap.mmap(-1, total)
            self._total = total
        elif total != self._total:
            raise ProtocolError(f"a payload of {self._total} bytes became one of {total} half way")
        return self._append(self._partial, chunk)

    def _append(self, partial: mmap.mmap, chunk: memoryview) -> memoryview | None:
        end = self._received + len(chunk)
        if end > self._total or (end < self._total and len(chunk) != CHUNK_BYTES):
            raise ProtocolError(f"a payload of {self._total} bytes got a frame of {len(chunk)} at {self._received}")
        partial[self._received : end] = chunk
        if end < self._total:
            self._received = end
            self._next += 1
            return None
        self._partial = None
        self._received = self._next = 0
        return memoryview(partial).toreadonly()

    @staticmethod
    def _complete(chunk: memoryview, total: int) -> memoryview:
        if len(chunk) != total:
            raise ProtocolError(f"a payload of {total} bytes came as {len(chunk)}")
        return chunk
