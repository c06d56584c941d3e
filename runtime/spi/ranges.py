"""Sets of byte ranges, as sorted tuples of ``(start, stop)`` that neither overlap nor touch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""Bytes ``start`` to ``stop - 1``; never empty."""

Ranges = tuple[Range, ...]


def union(ranges: Iterable[Range], *, gap: int = 0) -> Ranges:
    """Join ranges that overlap, touch, or are no more than ``gap`` bytes apart; what lies in a gap is then included."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def difference(wanted: Ranges, have: Ranges) -> Ranges:
    """Return what of ``wanted`` is not in ``have``."""
    lacking: list[Range] = []
    for start, stop in wanted:
        index = max(0, bisect_right(have, (start, start)) - 1)
        for held_start, held_stop in have[index:]:
            if held_start >= stop:
                break
            if held_start > start:
                lacking.append((start, held_start))
            start = max(start, held_stop)
        if start < stop:
            lacking.append((start, stop))
    return tuple(lacking)


def covers(have: Ranges, start: int, stop: int) -> bool:
    """Whether every byte from ``start`` to ``stop - 1`` is in ``have``; true of no bytes at all."""
    if start >= stop:
        return True
    index = bisect_right(have, start, key=lambda held: held[0]) - 1
    return index >= 0 and have[index][1] >= stop


def size(ranges: Iterable[Range]) -> int:
    """Count the bytes."""
    return sum(stop - start for start, stop in ranges)


def pieces(ranges: Iterable[Range], most: int) -> Iterator[Range]:
    """Cut ranges into pieces of ``most`` bytes at most."""
    for start, stop in ranges:
        for at in range(start, stop, most):
            yield at, min(stop, at + most)
