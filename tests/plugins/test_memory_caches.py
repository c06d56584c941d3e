"""The rules for caches, against the caches that mlx-lm's modules make. Nothing is computed: MLX knows shapes before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

from runtime.spi import Checkpoint, Workload
from runtime.testing.tiny import TINY_MODULES, tiny_config
from runtime_memory.layers import layer_caches

TOKENS = 8
NEED_A_GPU = {"bitnet", "muse_spark"}
"""Their layers are Metal kernels."""
OF_THEIR_OWN = {"deepseek_v41"}
"""It keeps caches of kinds that no rule describes."""
LAYERS = {"openelm": "num_transformer_layers"}
"""Keys of the number of layers that no other architecture has."""
NOT_READ = {"phi3small": "head_dim"}
"""Keys that a module has no use for, and no real configuration of its type."""
NOT_IMPORTABLE = {"olmo"}
"""It ends the process unless the package ai2-olmo is there."""
AT_LEAST = {"longcat_flash_ngram": 16}
"""Bytes outside any layer, which no rule counts."""


def made(config: dict[str, Any]) -> int:
    """Bytes that a model's own caches take of one sequence of :data:`TOKENS` tokens, in float32."""
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    caches = make_prompt_cache(model)
    model(mx.zeros((1, TOKENS), dtype=mx.int32), cache=caches)
    return sum(0 if cache.empty() else int(cache.nbytes) for cache in caches)


def counted(config: dict[str, Any]) -> int:
    """What the rules say of the same."""
    workload = Workload(context=TOKENS, sequences=1, prefill_chunk=0)
    caches = layer_caches(Checkpoint(Path("x"), config, {}))
    return sum(cache.nbytes(workload, 4) for layer in caches for cache in layer)


@pytest.mark.parametrize("module", sorted(set(TINY_MODULES) - NEED_A_GPU - OF_THEIR_OWN - NOT_IMPORTABLE))
def test_every_module_keeps_what_its_rule_says(module: str) -> None:
    config = tiny_config(module)
    if module in LAYERS:
        config["num_hidden_layers"] = config[LAYERS[module]]
    config.pop(NOT_READ.get(module, ""), None)
    assert counted(config) == made(config) - AT_LEAST.get(module, 0)
