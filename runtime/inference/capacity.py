"""What the stages of a pipeline can take at once, and in which steps their caches grow."""

from __future__ import annotations

import msgspec

CACHE_STEP = 256
"""Positions by which mlx-lm's caches grow."""


def whole_steps(tokens: int) -> int:
    """Return the positions of a cache that grew to hold ``tokens``."""
    return -(-tokens // CACHE_STEP) * CACHE_STEP


class Capacity(msgspec.Struct, frozen=True):
    """What the stages can take at once."""

    stages: int
    sequences: int
    """That run at once."""
    waiting: int
    """That may wait beyond those."""
    chunk: int
    """Prompt tokens a step, at most."""
    context: int
    """Tokens of one sequence, at most."""
    positions: int
    """Of the KV cache, for all sequences; at least the context."""
    batches: bool = True
    """Whether the model takes several sequences in one forward pass."""
    keeps: bool = False
    """Whether caches of ended sequences are kept while there is room."""
    trims: bool = False
    """Whether caches can be cut to any shorter length."""

    def cache(self, tokens: int) -> int:
        """Return the positions that the cache of one sequence with ``tokens`` takes: it grows by steps."""
        return min(tokens + CACHE_STEP, whole_steps(self.context))
