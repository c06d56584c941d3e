"""How long steps take, and how many prompt tokens may therefore come between two rounds of decoding."""

from __future__ import annotations

WEIGHT = 0.3
"""Of the newest measurement in the moving average."""
LEAST_CHUNK = 16
SHARE = 1.5
"""Seconds that prompts may take for each second of the round of decode steps before them. More lets tokens of running
sequences come later than two and a half times their usual gap; less makes those who come wait."""


class Pace:
    """Measures steps that are computed one after the other.

    What is measured is the time between two that come out, or since the step went in where nothing was before it: the
    time of the slowest stage.
    """

    def __init__(self) -> None:
        self._decode: float | None = None
        """Seconds for a step."""
        self._prompt: float | None = None
        """Seconds for a token."""
        self._last = float("-inf")

    def took(self, issued: float, now: float, prompt_tokens: int | None) -> None:
        """A step came out: one of ``prompt_tokens``, or None for one of decoding."""
        seconds = now - max(issued, self._last)
        self._last = now
        if prompt_tokens is None:
            self._decode = _averaged(self._decode, seconds)
        elif prompt_tokens:
            self._prompt = _averaged(self._prompt, seconds / prompt_tokens)

    def chunk(self, most: int, decodes: int) -> int:
        """Return how many prompt tokens take about as long as ``decodes`` steps of decoding, ``most`` at most."""
        if not self._decode or not self._prompt:
            return most
        tokens = int(SHARE * decodes * self._decode / self._prompt)
        return min(most, max(LEAST_CHUNK, tokens - tokens % LEAST_CHUNK))


def _averaged(average: float | None, value: float) -> float:
    return value if average is None else average + WEIGHT * (value - average)
