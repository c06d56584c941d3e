"""Whole binary messages as WebSocket frames, without any I/O (RFC 6455, section 5.2).

Each of our frames travels as one binary message in one piece. These are written and read here. What else a WebSocket
carries (its opening and closing, pings, messages in fragments, offences) is the business of the library, which is given
those bytes as they came. Its parser and its sending serve every case there is: they were measured to take a sixth of
the time of an ask, and the parser copies a tensor's bytes twice more (websockets 17).
"""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Callable

from runtime.wire.tensor import Buffer

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the library comes without its compiled part
    from websockets.utils import apply_mask

_FIN = 0x80
_WHOLE_BINARY = _FIN | 0x2
_MASKED = 0x80
_OPCODE = 0xF
_FIRST_OF_CONTROL = 0x8
"""Opcodes from here on are of control frames, which may come between the fragments of a message."""
_LENGTH_16, _LENGTH_64 = 126, 127
"""What stands in the place of a length that follows in 16 or 64 bits."""
_SHORTEST_HEADER, _LONGEST_HEADER = 2, 14
_KEY = 4
_KEYS = 1024
"""Masking keys that are drawn at a time; to draw each by itself is a system call a message."""

_SMALL = struct.Struct("!BB")
_MEDIUM = struct.Struct("!BBH")
_LARGE = struct.Struct("!BBQ")
_UINT16 = struct.Struct("!H")
_UINT64 = struct.Struct("!Q")


class MessageWriter:
    """Makes frames of messages."""

    def __init__(self, *, masks: bool) -> None:
        """``masks`` is what the side that dialled has to do (section 5.3)."""
        self._masks = masks
        self._keys = b""
        self._next_key = 0

    def frame(self, message: Buffer) -> bytes:
        """Return the frame of a message, given as bytes or a view of single bytes."""
        if not self._masks:
            return b"".join((_header(len(message), 0), message))
        if self._next_key == len(self._keys):
            self._keys, self._next_key = secrets.token_bytes(_KEYS * _KEY), 0
        key = self._keys[self._next_key : self._next_key + _KEY]
        self._next_key += _KEY
        return b"".join((_header(len(message), _MASKED), key, apply_mask(message, key)))


def _header(size: int, masked: int) -> bytes:
    if size < _LENGTH_16:
        return _SMALL.pack(_WHOLE_BINARY, masked | size)
    if size < 1 << 16:
        return _MEDIUM.pack(_WHOLE_BINARY, masked | _LENGTH_16, size)
    return _LARGE.pack(_WHOLE_BINARY, masked | _LENGTH_64, size)


class MessageReader:
    """Takes the whole binary messages out of what arrives, which is to be written to :meth:`room`."""

    def __init__(
        self, *, masked: bool, largest: int, take: Callable[[bytes], None], leave: Callable[[bytes], None]
    ) -> None:
        """Give each message of at most ``largest`` bytes to ``take``, and all other bytes to ``leave``, in order.

        ``masked`` is what the other side has to do. Everything is left until :meth:`begin` is called.
        """
        self._masked = _MASKED if masked else 0
        self._key = _KEY if masked else 0
        self._largest = largest
        self._take = take
        self._leave = leave
        # Two frames long, so that the rest of one is seldom moved to the front. Pages that were never written to take
        # no memory, and most connections carry little.
        self._memory = mmap.mmap(-1, 2 * (largest + _LONGEST_HEADER))
        self._view = memoryview(self._memory)
        self._start = self._end = 0
        """Where that begins, and ends, which has arrived and was not passed on."""
        self._left = 0
        """Bytes still to come of a frame that is left."""
        self._fragments = False
        """Whether a message is left of which more fragments are to come."""
        self._reading = False

    def begin(self) -> None:
        """Take messages from here on; what arrives next is the beginning of a frame."""
        self._reading = True

    def stop(self) -> None:
        """Leave everything from here on. It may be called by ``leave``."""
        self._reading = False

    def room(self) -> memoryview:
        """Return where to write what arrives; it is never empty."""
        if self._start == self._end:
            self._start = self._end = 0
            return self._view
        if len(self._view) - self._start < self._largest + _LONGEST_HEADER:
            waiting = self._end - self._start
            self._memory.move(0, self._start, waiting)
            self._start, self._end = 0, waiting
        return self._view[self._end :]

    def arrived(self, size: int) -> None:
        """Pass on what is complete now that ``size`` more bytes are written."""
        self._end += size
        while self._reading:
            if self._left:
                self._left -= self._pass(self._left)
                if self._left:
                    return
            elif self._end - self._start < _SHORTEST_HEADER or not self._next_frame():
                return
        self._pass(self._end - self._start)

    def _next_frame(self) -> bool:
        """Take the next frame, or see that it is left; return whether anything else may be done now."""
        memory, start, end = self._memory, self._start, self._end
        first, second = memory[start], memory[start + 1]
        size = second & ~_MASKED
        at = start + _SMALL.size
        if size == _LENGTH_16:
            at += _UINT16.size
            if at > end:
                return False
            (size,) = _UINT16.unpack_from(memory, start + _SMALL.size)
        elif size == _LENGTH_64:
            at += _UINT64.size
            if at > end:
                return False
            (size,) = _UINT64.unpack_from(memory, start + _SMALL.size)
        if (
            first != _WHOLE_BINARY
            or second & _MASKED != self._masked
            or size > self._largest
            or self._fragments  # no other message may come between them
        ):
            if first & _OPCODE < _FIRST_OF_CONTROL:
                self._fragments = not first & _FIN
            self._left = at - start + (_KEY if second & _MASKED else 0) + size
            return True
        begin = at + self._key
        stop = begin + size
        if stop > end:
            return False
        self._start = stop
        self._take(apply_mask(self._view[begin:stop], memory[at:begin]) if self._masked else memory[begin:stop])
        return True

    def _pass(self, most: int) -> int:
        """Leave at most so many bytes of those that are here; return how many."""
        start = self._start
        self._start = stop = min(start + most, self._end)
        if stop > start:
            self._leave(self._memory[start:stop])
        return stop - start
