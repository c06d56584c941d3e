"""How many prompt tokens may come between two decode steps of a micro-batch, from how long its steps come apart."""

from __future__ import annotations

from collections import deque
from statistics import median

LEAST_CHUNK = 4
"""Prompt tokens: fewer would cost about as much, as the weights are read once more in any case."""
FIRST_CHUNK = 64
"""Prompt tokens before anything was measured."""
SHARE = 1.7
"""Seconds that prompts may take for each second of decoding, if those who run are as many as those who come or more.
More lets the next token come later than some three times the usual gap; less makes those who come wait."""
LEAST_SHARE = 0.7
"""The same, once decoding takes longer than it did when the prompt began: the texts that run grow meanwhile. The gap
stays what it was then, and prompts get less of it, but no less than this."""
CALM_GAPS = 5
"""Gaps without prompts between that are remembered; their median counts, which a slow one does not move."""
CALM_EVERY = 12
"""Gaps with prompts between, after which one without is wanted: decoding takes longer the longer the texts get, and
that must not be put down to the prompts, or they would be starved."""
WEIGHT = 0.4
"""Of the newest measurement in the moving average. A token costs more the further on in its prompt it is."""


class Pace:
    """Measures the gaps between the steps of micro-batches, and of those that prompts came between, what they cost.

    Gaps are compared, not single steps: results of steps are heard of late, and several at once, as the next ones are
    dispatched first.
    """

    def __init__(self) -> None:
        self._calm: deque[float] = deque(maxlen=CALM_GAPS)
        self._token: float | None = None
        """Seconds that a prompt token adds to a gap."""
        self._since_calm = 0
        """Gaps with prompts between since the last one without."""
        self._usual: float | None = None
        """Seconds of a gap without prompts, when the last of them began to be taken in."""

    @property
    def wants_calm(self) -> bool:
        """Whether the next gap should be without prompts, to see what decoding takes by now."""
        return self._since_calm >= CALM_EVERY

    def begins(self) -> None:
        """A prompt begins to be taken in."""
        if self._calm:
            self._usual = median(self._calm)

    def gap(self, seconds: float, prompt_tokens: int) -> None:
        """Two steps of a micro-batch came out so far apart, with so many prompt tokens between them."""
        if not prompt_tokens:
            self._calm.append(seconds)
            self._since_calm = 0
            return
        self._since_calm += 1
        if self._calm:
            token = max(0.0, seconds - median(self._calm)) / prompt_tokens
            self._token = token if self._token is None else self._token + WEIGHT * (token - self._token)

    def chunk(self, most: int, waiting: int, running: int) -> int:
        """Return how many prompt tokens may come before the next decode step, ``most`` at most.

        Where more sequences wait for their prompt than run, the few wait for the many.
        """
        weight = max(1.0, waiting / max(1, running))
        if not self._calm or not self._token:
            return min(most, int(FIRST_CHUNK * weight))
        calm = median(self._calm)
        left = (1 + SHARE) * (self._usual or calm) - calm
        seconds = min(SHARE * calm, max(LEAST_SHARE * calm, left))
        return min(most, max(LEAST_CHUNK, int(weight * seconds / self._token)))
