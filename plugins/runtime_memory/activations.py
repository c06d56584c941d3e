"""What one forward pass through a layer needs beside weights and caches.

MLX's CPU back end allocates for up to ten operations ahead of the one it computes, so what a layer makes one after the
other is there at once for a while. The factors were fitted to ``mx.get_peak_memory()`` of mlx 0.32.4 over random shapes
of several architectures; each predicts within 5 % on a CPU. ``python -m benchmarks.memory`` measures the whole.

==================  =================================================================================================
attention           tokens x (8 hidden + 6 query + 3 key-value) numbers; a mask; a copy of one layer's cache while it
                    grows; and where no fused kernel takes whole chunks, heads x tokens x context scores
latent attention    scores twice, for the rotated part is a mask, and keys and values of the whole context
feed-forward        2 x width a token; with experts, 2 x (width + hidden) for each expert that a token goes through
convolution         14 numbers a channel and token
recurrence          token by token: the states of all tokens. In blocks: 1.7 x heads x block x block, and what every
                    other layer of the slice keeps as well until the pass is over, because its new state is computed
                    last (:func:`retained_bytes`)
==================  =================================================================================================
"""

from __future__ import annotations

from typing import Any

from runtime.spi import Checkpoint, Workload
from runtime_memory.caches import STATE_WIDTH, Attention, Cache, State
from runtime_memory.sizes import Sizes, number

BLOCK = 256
"""Tokens that mlx-lm's blockwise recurrence takes at once."""

_FUSED_HEAD_DIMS = (64, 80, 128)
"""Head sizes for which MLX's fused attention takes whole chunks (Metal, half precision)."""
_GROWTH = 1.3
"""Share of one layer's cache that is there a second time while it grows."""
_BLOCKS = 1.7
"""Matrices of block x block for each head of a recurrence that is computed in blocks."""


def working_bytes(checkpoint: Checkpoint, layer: tuple[Cache, ...], workload: Workload, width: int) -> int:
    """Return the bytes that a layer needs for one chunk at the end of the context.

    Args:
        checkpoint: the model.
        layer: the caches that the layer keeps, which say what it does.
        workload: what is asked of it.
        width: bytes of a number. Half precision is taken to be computed on a GPU, with fused kernels.
    """
    sizes, config = Sizes.of(checkpoint), checkpoint.text_config
    chunk = min(workload.prefill_chunk, workload.context)
    numbers = chunk * (8 * sizes.hidden + _feed_forward(sizes))
    return numbers * width + _mixer(layer, config, sizes, workload, width)


def retained_bytes(layer: tuple[Cache, ...], workload: Workload, width: int) -> int:
    """Return the bytes that a layer still keeps while later layers are computed.

    mlx-lm's blockwise recurrence makes the new state of the same decays and inputs as the output; the output goes on to
    the next layer first.
    """
    chunk = min(workload.prefill_chunk, workload.context)
    return sum(
        (
            cache.heads * min(chunk, BLOCK) ** 2
            + chunk * cache.heads * cache.state // cache.channels
            + 3 * chunk * cache.channels
        )
        * width
        for cache in layer
        if isinstance(cache, State) and cache.heads
    )


def _feed_forward(sizes: Sizes) -> int:
    """Numbers a token."""
    return max(2 * sizes.inner, sizes.chosen * 2 * (sizes.expert + sizes.hidden))


def _mixer(layer: tuple[Cache, ...], config: dict[str, Any], sizes: Sizes, workload: Workload, width: int) -> int:
    return sum(
        _attention(cache, config, sizes, workload, width)
        if isinstance(cache, Attention)
        else _recurrence(cache, workload, width)
        for cache in layer
    )


def _attention(cache: Attention, config: dict[str, Any], sizes: Sizes, workload: Workload, width: int) -> int:
    chunk, context = min(workload.prefill_chunk, workload.context), workload.context
    if cache.window is not None:
        context = min(context, cache.window + chunk)
    fused = width == 2 and sizes.head_dim in _FUSED_HEAD_DIMS
    latent = number(config, "kv_lora_rank", default=0)
    rotated = number(config, "qk_rope_head_dim", default=0)
    flat = number(config, "qk_nope_head_dim", default=sizes.head_dim)
    query = sizes.heads * (flat + rotated if latent else sizes.head_dim)
    numbers = chunk * (6 * query + (0 if latent else 3 * cache.heads * (cache.key_dim + cache.value_dim) // 2))
    if latent:
        numbers += context * sizes.heads * (flat + number(config, "v_head_dim", default=flat))
    scores = 0 if fused else (2 if latent else 1) * sizes.heads * chunk * context
    growth = int(_GROWTH * cache.nbytes(workload, width))
    return (numbers + scores) * width + chunk * context + growth


def _recurrence(state: State, workload: Workload, width: int) -> int:
    chunk = min(workload.prefill_chunk, workload.context)
    convolution = 14 * chunk * state.channels * width
    if state.heads:
        return convolution + int(_BLOCKS * state.heads * min(chunk, BLOCK) ** 2 * width)
    # On a GPU one kernel goes over the tokens, and keeps nothing but the last state.
    return convolution + (chunk * state.state * STATE_WIDTH if width > 2 else 0)
