"""Whether a model takes several sequences in one forward pass."""

from __future__ import annotations

import mlx.core as mx

from runtime.errors import ModelUnsupported
from runtime.inference.caches import extended, merged
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, ModelFamily

WRONG = frozenset({"afm7", "minimax_m3_vl", "recurrent_gemma"})
"""Types of models that take a batch and give its rows other numbers than alone, as of mlx-lm 0.32.2."""


def reason_against(family: ModelFamily, checkpoint: Checkpoint) -> str | None:
    """Return why a model takes one sequence at a time, or None if it takes several.

    Some caches of mlx-lm hold one sequence only, and some models take the position in the cache for one number. So a
    batch is run through the whole model, without weights and without ever evaluating it. On the compute thread.
    """
    if checkpoint.model_type in WRONG:
        return f"in a batch mlx-lm's {checkpoint.model_type} gives other numbers than alone"
    layers = LayerSpan.whole(checkpoint.num_layers)
    model = family.build(checkpoint.config, checkpoint.tensors or None)
    shard = Shard(model, layers, family.layer_calls(checkpoint.config))
    try:
        caches = [shard.new_cache() for _ in range(3)]
        for length, cache in zip((3, 2), caches, strict=False):
            shard.forward(mx.zeros((1, length), dtype=mx.int32), cache)
        together = merged(caches[:2])
        extended(together, merged(caches[2:]))
        shard.forward(mx.zeros((3, 1), dtype=mx.int32), together)
    except (ModelUnsupported, TypeError, ValueError, AttributeError, IndexError, NotImplementedError) as error:
        return str(error)
    return None
