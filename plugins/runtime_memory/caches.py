"""What one layer keeps of one sequence, by mlx-lm's kinds of cache. All sizes are in numbers until a width is given."""

from __future__ import annotations

from typing import NamedTuple

from runtime.spi import Workload

STEP = 256
"""``KVCache.step`` of mlx-lm: by so many tokens a cache grows."""

STATE_WIDTH = 4
"""Bytes of a number of a recurrent state, which mlx-lm keeps in float32 whatever the model computes in."""


class Attention(NamedTuple):
    """Keys and values of the tokens so far; with multi-head latent attention, the latent and the rotated part."""

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    """Tokens that the layer looks back on, where it forgets what lies further back."""

    def nbytes(self, workload: Workload, width: int) -> int:
        """Bytes of one sequence at its longest."""
        tokens = -(-workload.context // STEP) * STEP
        if self.window is not None:
            # A rotating cache takes in a whole chunk before it forgets.
            tokens = min(tokens, self.window + workload.prefill_chunk)
        return self.heads * (self.key_dim + self.value_dim) * width * tokens


class State(NamedTuple):
    """Arrays that do not grow: the last inputs of a convolution, the state of a recurrence."""

    channels: int
    """Of the convolution."""
    kept: int
    """Inputs of each channel that are kept, in the type computed in."""
    state: int
    heads: int = 0
    """Of a recurrence that is computed for blocks of tokens at once, as attention is; 0 goes token by token."""

    def nbytes(self, workload: Workload, width: int) -> int:
        """Bytes of one sequence."""
        del workload
        return self.channels * self.kept * width + self.state * STATE_WIDTH


Cache = Attention | State
