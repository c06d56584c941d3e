"""How unlikely a silence is, judged by the gaps before it: the φ of accrual failure detectors.

Hayashibara, Défago, Yared and Katayama: The φ Accrual Failure Detector (2004). The gaps between signs of life are
taken to be normally distributed. φ is the negative decimal logarithm of the chance that a gap is longer than the
silence so far: at φ = 8 one gap in 10⁸ would be.
"""

from __future__ import annotations

import math
from collections import deque

HIGHEST = 300.0
"""φ is cut to this: the chance of a longer silence is about the smallest number that a float can hold."""


def phi(silence: float, mean: float, deviation: float) -> float:
    """Return φ of a silence, with the gaps' mean and standard deviation, all in seconds."""
    later = 0.5 * math.erfc((silence - mean) / (deviation * math.sqrt(2)))
    return min(HIGHEST, max(0.0, -math.log10(later))) if later > 0 else HIGHEST


class Gaps:
    """The last gaps between signs of life of one peer, in seconds."""

    def __init__(self, expected: float, window: int) -> None:
        """Begin as if there had been two gaps around ``expected``; keep the last ``window``."""
        # Akka's first estimate: with no history yet, a quarter of the interval is how far gaps stray.
        self._gaps = deque((expected * 0.75, expected * 1.25), maxlen=window)
        self._measure()

    def add(self, gap: float) -> None:
        """Take note of a gap."""
        self._gaps.append(gap)
        self._measure()

    def _measure(self) -> None:
        # Anew each time: running sums of squares lose their digits, and a gap comes a few times a second.
        self.mean = math.fsum(self._gaps) / len(self._gaps)
        self.deviation = math.sqrt(math.fsum((gap - self.mean) ** 2 for gap in self._gaps) / len(self._gaps))
