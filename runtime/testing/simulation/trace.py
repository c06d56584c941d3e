"""What happened in a simulation, in order: for comparing two runs, and for reading one that failed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import zip_longest


class Trace:
    """Lines of text with their times. Frames are many, so they count towards the digest and are kept only on demand."""

    def __init__(self, keep_frames: bool = False) -> None:
        self.keep_frames = keep_frames
        self.lines: list[str] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._closed = False

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def note(self, now: float, text: str) -> None:
        """Add an event."""
        self._add(f"{now:12.6f} {text}", True)

    def frame(self, now: float, text: str) -> None:
        """Add a frame on its way."""
        self._add(f"{now:12.6f} {text}", self.keep_frames)

    def close(self) -> None:
        """Add nothing from here on: what follows is the taking apart of the simulation."""
        self._closed = True

    def digest(self) -> str:
        """Return a hash of everything so far, frames included. The same seed gives the same one."""
        return self._hash.hexdigest()

    def _add(self, line: str, keep: bool) -> None:
        if self._closed:
            return
        self._hash.update(line.encode() + b"\n")
        if keep:
            self.lines.append(line)


def differences(one: Trace, other: Trace) -> Iterator[tuple[str | None, str | None]]:
    """Yield the lines, side by side, from the first in which two traces differ."""
    pairs = zip_longest(one.lines, other.lines)
    for ours, theirs in pairs:
        if ours != theirs:
            yield ours, theirs
            break
    yield from pairs
