"""For every text model of mlx-lm, the parameters of any slice are those of mlx-lm's full load, bit by bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runtime.testing.tiny import TINY_MODULES, tiny_config
from tests.weights.checkpoints import (
    assert_equal_parts,
    loaded_by_mlx_lm,
    loaded_slice,
    parameters,
    random_model,
    write,
)
from tests.weights.raw_layouts import STEPS, raw

NOT_IMPORTABLE = {"olmo"}
"""Needs a package of its own, without which importing it ends the process."""


def check(folder: Path, cuts: list[int]) -> None:
    parts = [loaded_slice(folder, start, stop, cuts[-1]) for start, stop in pairwise(cuts)]
    assert_equal_parts(loaded_by_mlx_lm(folder), parts)


@pytest.mark.parametrize("module", sorted(set(TINY_MODULES) - NOT_IMPORTABLE))
def test_slices_of_a_converted_checkpoint_are_parts_of_the_full_load(tmp_path: Path, module: str) -> None:
    config = tiny_config(module)
    model = random_model(config)
    layers = len(model.layers)
    folder = write(tmp_path / "model", config, parameters(model))
    check(folder, [0, 1, layers - 1, layers])


@pytest.mark.parametrize("module", sorted(set(STEPS) & set(TINY_MODULES)))
def test_each_layer_of_a_raw_checkpoint_is_part_of_the_full_load(tmp_path: Path, module: str) -> None:
    config = tiny_config(module)
    model = random_model(config)
    weights = parameters(model)
    folder = write(tmp_path / "model", config, stored := raw(module, weights, config))
    assert {name: array.shape for name, array in stored.items()} != {
        name: array.shape for name, array in weights.items()
    }, "the layout is the converted one, so nothing is tested"
    check(folder, list(range(len(model.layers) + 1)))


VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tied head": ("mixtral", "mixtral", {"tie_word_embeddings": True}),
    "tied head, delta net": ("qwen3_next", "qwen3_next", {"tie_word_embeddings": True}),
    "experts in every other layer": ("qwen2_moe", "qwen2_moe", {"decoder_sparse_step": 2}),
    "experts beside a dense network": (
        "gemma4_text",
        "gemma4_text with experts",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_raw_checkpoints_too(tmp_path: Path, variant: str) -> None:
    module, layout, changes = VARIANTS[variant]
    config = {**tiny_config(module), **changes}
    model = random_model(config)
    weights = parameters(model)
    folder = write(tmp_path / "model", config, stored := raw(layout, weights, config))
    assert stored.keys() != weights.keys()
    check(folder, list(range(len(model.layers) + 1)))
