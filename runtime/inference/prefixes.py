"""Which ended sequences' caches are kept for prompts that begin alike. Pure: it knows tokens, and no caches.

The driver decides what is kept, used and given up, and every stage does as its steps say (:class:`Change` in
:mod:`runtime.inference.protocol`); so stages never disagree about what is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import msgspec

LEAST_KEPT = 64
"""Tokens of a sequence that is worth keeping."""
LEAST_USED = 32
"""Tokens in common that are worth copying a cache for."""

Tokens = tuple[int, ...]


class Prefix(msgspec.Struct, frozen=True):
    """The beginning of a sequence that is kept."""

    sequence: int
    length: int
    """Tokens."""


class _Kept(msgspec.Struct, frozen=True):
    owner: str
    tokens: Tokens


class Prefixes:
    """The kept sequences, least recently used first. Nobody finds those of another owner."""

    def __init__(self, *, trims: bool) -> None:
        """``trims`` says whether a cache can be cut to any length, or is of use as a whole only: windows that have
        moved on, and states that sum up all tokens, have no beginning to go back to."""
        self._trims = trims
        self._kept: dict[int, _Kept] = {}

    def positions(self, size: Callable[[int], int]) -> int:
        """Return the positions that all take, where ``size`` says what so many tokens take."""
        return sum(size(len(kept.tokens)) for kept in self._kept.values())

    def length(self, sequence: int) -> int:
        """Return the tokens of a kept sequence."""
        return len(self._kept[sequence].tokens)

    def find(self, owner: str, tokens: Tokens) -> Prefix | None:
        """Return the longest beginning of ``tokens`` that is kept; it counts as used. The last token is left out, as a
        step has to be run over something."""
        best: Prefix | None = None
        for sequence, kept in self._kept.items():
            if kept.owner != owner:
                continue
            length = min(common(kept.tokens, tokens), len(tokens) - 1)
            if length < LEAST_USED or (not self._trims and length < len(kept.tokens)):
                continue
            if best is None or length >= best.length:
                best = Prefix(sequence, length)
        if best is not None:
            self._kept[best.sequence] = self._kept.pop(best.sequence)
        return best

    def keep(self, sequence: int, owner: str, tokens: Tokens, pinned: Set[int] = frozenset()) -> list[int]:
        """Keep a sequence that ended; return those that need not be kept any more, maybe itself, and none that is
        pinned."""
        if not self._trims:
            self._kept[sequence] = _Kept(owner, tokens)
            return []
        covered = []
        for other, kept in self._kept.items():
            if kept.owner == owner:
                length = common(kept.tokens, tokens)
                if length == len(tokens):
                    return [sequence]
                if length == len(kept.tokens) and other not in pinned:
                    covered.append(other)
        for other in covered:
            del self._kept[other]
        self._kept[sequence] = _Kept(owner, tokens)
        return covered

    def evict(self, pinned: Set[int]) -> int | None:
        """Give up the one that was used longest ago, of those that are not pinned; return it, None if there is none."""
        for sequence in self._kept:
            if sequence not in pinned:
                del self._kept[sequence]
                return sequence
        return None

    def remove(self, sequence: int) -> None:
        """Give one up."""
        del self._kept[sequence]


def common(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
