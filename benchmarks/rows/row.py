"""What a row of the benchmark is: something of ours and something to compare it with, measured in turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import median

import msgspec

Measure = Callable[[], Awaitable[float]]
"""Does something once, and returns how much of it was done a second, or how long it took; the row says which."""


class Aim(msgspec.Struct, frozen=True):
    """What a ratio should be."""

    least: float | None = None
    most: float | None = None

    def is_met(self, ratio: float) -> bool:
        """Whether the ratio is within the bounds."""
        return (self.least is None or ratio >= self.least) and (self.most is None or ratio <= self.most)

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"


class Row(msgspec.Struct, frozen=True):
    """A measured row."""

    name: str
    against: str
    loop: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    """Ours by theirs: the median over the rounds of the ratio within each."""
    aim: str
    met: bool


async def compare(
    name: str, ours: Measure, against: str, theirs: Measure, aim: Aim, *, loop: str, unit: str = "1/s", rounds: int = 7
) -> Row:
    """Measure two things in turns, so that what else the machine does meanwhile weighs on both; one round is a warm-up.

    ``loop`` names the event loop that this runs on.
    """
    pairs = []
    for number in range(rounds + 1):
        # Each goes first in half of the rounds: the second finds warm caches, and the garbage of the first.
        if number % 2:
            mine, other = await ours(), await theirs()
        else:
            other, mine = await theirs(), await ours()
        if number:
            pairs.append((mine, other))
    ratio = median(mine / other for mine, other in pairs)
    return Row(
        name=name,
        against=against,
        loop=loop,
        unit=unit,
        ours=median(mine for mine, _ in pairs),
        theirs=median(other for _, other in pairs),
        ratio=ratio,
        aim=str(aim),
        met=aim.is_met(ratio),
    )
