"""How long work on the compute thread may take, to know when it is far too late. Pure; times are in seconds.

A step over more tokens takes longer, by how much depends on the machine. So steps are told apart by the power of two
that their number of tokens is next to. The first of each kind has kernels to compile, or weights to read from a disk.
How long it may take is estimated: from steps of other kinds, or from what the machine has measured of the layers, or
from the size of the weights; and it may take a good while in any case, as may all that is no step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from runtime.spi import LayerSeconds, LayerSpan

FACTOR = 20.0
"""A step that takes so many times as long as the longest of its kind is stuck, or as good as that: another program
on the same cores, or a cache that has grown, costs less."""
DECAY = 0.98
"""What is left, after each further step, of the longest: one moment of swapping must not be the measure for ever."""
FIRST = 24.0
"""How many times as long as any step may take that may take which nobody has a measure for: compiling kernels,
importing libraries, reading weights. With the default patience that is two minutes."""
BYTES_A_SECOND = 5e9
"""Of weights that are multiplied with a token, on a machine that has measured nothing. The reference BLAS does about
as much in float32, and a GPU far more."""
SLOWEST_READ = 4e6
"""Bytes a second that weights are read with at least: a tenth of a slow disk."""

Estimate = Callable[[int], float]
"""Seconds that a step over so many tokens is thought to take."""


class Expected(Protocol):
    """What is known of the time that a piece of work takes, and who wants to know how long it took."""

    @property
    def what(self) -> str:
        """What it is, for the text of a fault."""

    @property
    def allowed(self) -> float:
        """Seconds that it may take, or be without progress."""

    def took(self, seconds: float) -> None:
        """Take note of its time."""


class Bounded(msgspec.Struct, frozen=True):
    """Work that is not repeated."""

    what: str
    allowed: float

    def took(self, seconds: float) -> None:
        """Learn nothing of it."""


class StepTimes:
    """What is known of one slice.

    Args:
        least: seconds that any step may take.
        estimate: what to think before any step was taken.
    """

    def __init__(self, least: float, estimate: Estimate) -> None:
        self._least = least
        self._estimate = estimate
        self._longest: dict[int, float] = {}
        """Seconds by kind. Replaced, never changed: the compute thread reads it while the event loop takes notes."""

    def expected(self, tokens: int) -> ExpectedStep:
        """Return what is known of a step over so many tokens, of all its sequences together."""
        return ExpectedStep(self, tokens)

    def allowed(self, tokens: int) -> float:
        """Return the seconds that a step may take."""
        kind = tokens.bit_length()
        longest = self._longest
        if kind in longest:
            return max(self._least, FACTOR * longest[kind])
        # A larger step takes at most as much more time as it has more tokens, and a smaller one no more time.
        known = [seconds * 2.0 ** max(0, kind - other) for other, seconds in longest.items()]
        return max(FIRST * self._least, FACTOR * (max(known) if known else self._estimate(tokens)))

    def took(self, tokens: int, seconds: float) -> None:
        """Take note of a step. One over no tokens, which only drops caches, says nothing of others."""
        if tokens:
            kind = tokens.bit_length()
            self._longest = {**self._longest, kind: max(seconds, DECAY * self._longest.get(kind, 0.0))}


class ExpectedStep:
    """A step, by what is known of its like."""

    __slots__ = ("_times", "_tokens")

    what = "a step"

    def __init__(self, times: StepTimes, tokens: int) -> None:
        self._times = times
        self._tokens = tokens

    @property
    def allowed(self) -> float:
        """Seconds that it may take."""
        return self._times.allowed(self._tokens)

    def took(self, seconds: float) -> None:
        """Take note of its time."""
        self._times.took(self._tokens, seconds)


def estimate(nbytes: int, span: LayerSpan, measured: LayerSeconds | None) -> Estimate:
    """Return how long steps over a slice are thought to take.

    Args:
        nbytes: the slice's weights, as they are loaded.
        span: its layers.
        measured: what the machine has measured of all layers of the model, if it has.
    """
    if measured is None:
        return lambda tokens: tokens * nbytes / BYTES_A_SECOND
    decode = sum(measured.decode[span.start : span.stop])
    prefill = sum(measured.prefill[span.start : span.stop])
    return lambda tokens: decode + tokens * prefill


def longest_read(nbytes: int, largest: int, layers: int) -> float:
    """Return the seconds that loading one module may take, by the slowest disk.

    Args:
        nbytes: of the whole model.
        largest: of its largest tensor, which may be outside the layers.
        layers: of the whole model. The experts of a layer may be one module.
    """
    return max(largest, nbytes / layers) / SLOWEST_READ
