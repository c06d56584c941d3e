"""What one stage needs, in parts. All arithmetic is in bytes; ``w`` is the width of the type computed in.

==================  =================================================================================================
weights             exact, from the headers, after conversion (:mod:`runtime_memory.weights`)
KV cache            layers x 2 x kv_heads x head_dim x w x tokens x sequences; MLX grows a cache in steps of 256
                    tokens, and a sliding layer's holds its window and the chunk being added
working memory      one chunk of T tokens through one layer: T x (4 hidden + 2 query + 2 kv + 3 feed-forward) x w,
                    the mask, and the copy of one layer's cache while it grows; where MLX has no fused attention
                    kernel, also 2 x heads x T x tokens x w of scores
logits              on the last stage: sequences x vocabulary x (w + 12), for the logits, their log-probabilities
                    and a sorted copy in float32. The head runs on the tokens that are sampled from, one a sequence
loading             what the largest module needs while it is converted; only what exceeds the cache, the working
                    memory and the logits, none of which exist at that time
overhead            what MLX and the allocator keep aside
==================  =================================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, MemoryEstimate, MemoryEstimator, Part, Workload
from runtime.spi.memory import KV_CACHE
from runtime_memory.weights import WIDTH, loaded_modules

CACHE_STEP = 256
"""``KVCache.step`` of mlx-lm."""

OVERHEAD = 64 << 20

_FUSED_HEAD_DIMS = (64, 80, 128)
"""Head sizes for which MLX's fused attention takes whole chunks (Metal, half precision)."""


class Shape(NamedTuple):
    """The sizes of the configuration that the estimate needs."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    windows: tuple[int | None, ...]
    """For each layer the tokens it can look back on, or None for all."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Shape:
        """Read them.

        Raises:
            CheckpointCorrupt: one is missing.
        """
        hidden = _size(checkpoint, "hidden_size", "n_embd", "d_model")
        heads = _size(checkpoint, "num_attention_heads", "n_head", "n_heads")
        return cls(
            hidden=hidden,
            heads=heads,
            kv_heads=_size(checkpoint, "num_key_value_heads", default=heads),
            head_dim=_size(checkpoint, "head_dim", default=max(1, hidden // heads)),
            inner=_size(checkpoint, "intermediate_size", "n_inner", default=4 * hidden),
            vocabulary=_size(checkpoint, "vocab_size"),
            windows=_windows(checkpoint),
        )


class SafetensorsEstimator(MemoryEstimator):
    """Arithmetic over the headers and the configuration; a layer that is not known to be bounded counts in full."""

    def estimate(
        self, checkpoint: Checkpoint, span: LayerSpan, workload: Workload, options: LoadOptions
    ) -> MemoryEstimate:
        """Return what ``span`` needs."""
        shape = Shape.of(checkpoint)
        width = WIDTH[options.dtype]
        modules = list(loaded_modules(checkpoint, span, options))
        caches = [_cache(shape, shape.windows[layer], workload, width) for layer in range(span.start, span.stop)]
        working = _working(shape, workload, width, fused=width == 2 and shape.head_dim in _FUSED_HEAD_DIMS)
        working += max(caches)
        logits = workload.sequences * shape.vocabulary * (width + 12) if span.is_last else 0
        staged = max((module.staged for module in modules), default=0)
        return MemoryEstimate(
            parts=(
                Part("weights", sum(module.resident for module in modules)),
                Part(KV_CACHE, sum(caches)),
                Part("working memory", working),
                Part("logits", logits),
                Part("loading", max(0, staged - sum(caches) - working - logits)),
                Part("overhead", OVERHEAD),
            )
        )


def _cache(shape: Shape, window: int | None, workload: Workload, width: int) -> int:
    tokens = -(-workload.context // CACHE_STEP) * CACHE_STEP
    if window is not None:
        tokens = min(tokens, window + workload.prefill_chunk)
    return 2 * shape.kv_heads * shape.head_dim * width * tokens * workload.sequences


def _working(shape: Shape, workload: Workload, width: int, *, fused: bool) -> int:
    chunk = min(workload.prefill_chunk, workload.context)
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    numbers = chunk * (4 * shape.hidden + 2 * query + 2 * kv + 3 * shape.inner)
    if not fused:
        numbers += 2 * shape.heads * chunk * workload.context
    return numbers * width + chunk * workload.context


def _size(checkpoint: Checkpoint, *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = checkpoint.text_config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        raise CheckpointCorrupt(f"{checkpoint.path / 'config.json'} gives no {keys[0]}, so no memory can be estimated")
    return default


def _windows(checkpoint: Checkpoint) -> tuple[int | None, ...]:
    config, layers = checkpoint.text_config, checkpoint.num_layers
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if not isinstance(window, int) or window <= 0 or not isinstance(kinds, list) or len(kinds) != layers:
        return (None,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
