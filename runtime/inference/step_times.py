"""How long steps over a slice take, to know when one is far too late. Pure; times are in seconds.

A step over more tokens takes longer, by how much depends on the machine. So steps are told apart by the power of two
that their number of tokens is next to. The first of each kind is never late: it may have kernels to compile, or
weights to read from a disk.
"""

from __future__ import annotations

FACTOR = 20.0
"""A step that takes so many times as long as the longest of its kind is stuck, or as good as that: another program
on the same cores, or a cache that has grown, costs less."""
DECAY = 0.98
"""What is left, after each further step, of the longest: one moment of swapping must not be the measure for ever."""


class StepTimes:
    """What is known of one slice.

    Args:
        least: seconds that any step may take.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._longest: dict[int, float] = {}
        """Seconds by kind."""

    def expected(self, tokens: int) -> ExpectedStep:
        """Return what is known of a step over so many tokens, of all its sequences together."""
        return ExpectedStep(self, tokens.bit_length())

    def allowed(self, kind: int) -> float | None:
        """Return the seconds that a step may take; None if none of its kind was seen yet."""
        longest = self._longest.get(kind)
        return None if longest is None else max(self._least, FACTOR * longest)

    def took(self, kind: int, seconds: float) -> None:
        """Take note of a step."""
        self._longest[kind] = max(seconds, DECAY * self._longest.get(kind, 0.0))


class ExpectedStep:
    """What is known of one step, and who wants to know how long it took."""

    __slots__ = ("_kind", "_times")

    def __init__(self, times: StepTimes, kind: int) -> None:
        self._times = times
        self._kind = kind

    @property
    def allowed(self) -> float | None:
        """Seconds that it may take; None if nobody can say."""
        return self._times.allowed(self._kind)

    def took(self, seconds: float) -> None:
        """Take note of its time."""
        self._times.took(self._kind, seconds)
