"""A model cut into stages computes bit for bit what it computes whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.inference.shard import Shard
from runtime.spi import LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.models import tiny_llama
from runtime_dense.family import DenseFamily

FLOAT32 = LoadOptions(dtype="float32", dequantize=True)
CHUNKS = [list(range(5, 25)), [7], [9], list(range(12)), [1]]
"""Prefill in two chunks with decoding before, between and after."""


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    flat: list[tuple[str, mx.array]] = tree_flatten(model.parameters())
    return flat


def differences(whole: Any, shards: list[Shard], chunks: list[list[int]]) -> list[float]:
    """Run the chunks through both; return the largest difference of the logits for each."""
    cache, caches = make_prompt_cache(whole), [shard.new_cache() for shard in shards]
    found = []
    for chunk in chunks:
        tokens = mx.array([chunk])
        expected = whole(tokens, cache=cache)
        hidden = tokens
        for shard, own in zip(shards, caches, strict=True):
            hidden = shard.forward(hidden, own)
            mx.eval(hidden, shard.ghost_state(own))
        found.append(float(mx.abs(expected - hidden).max().item()))
    return found


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"tied": False},
        {"quantize": 4},
        {"sliding": 8},
        {"files": 3},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_slices_loaded_from_files_equal_the_whole_model_loaded_from_files(tmp_path: Path, kind: dict[str, Any]) -> None:
    family, checkpoint = DenseFamily(), read_checkpoint(tiny_llama(tmp_path / "model", **kind))

    def load(span: LayerSpan) -> Shard:
        shard = Shard(family.build(checkpoint.config), span)
        family.load(shard.model, checkpoint, span, FLOAT32, lambda done, total: None)
        return shard

    total = checkpoint.num_layers
    whole = load(LayerSpan.whole(total))
    parts = [load(LayerSpan(0, 1, total)), load(LayerSpan(1, 3, total)), load(LayerSpan(3, total, total))]
    assert differences(whole.model, parts, CHUNKS) == [0.0] * len(CHUNKS)
    loaded = dict(_flat(whole.model))
    for part in parts:
        for name, array in _flat(part.model):
            assert mx.array_equal(array, loaded[name]), name


def test_a_slice_owns_nothing_of_the_layers_outside_it(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", tied=False))
    shard = Shard(DenseFamily().build(checkpoint.config), LayerSpan(1, 3, 4))
    owners = {name.split(".")[2] if ".layers." in name else name for name, _ in _flat(shard.model)}
    assert owners == {"1", "2"}


def test_a_ghost_answers_for_the_layer_it_stands_for(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", sliding=8))
    model = DenseFamily().build(checkpoint.config)
    expected = [layer.use_sliding for layer in model.layers]
    Shard(model, LayerSpan(1, 2, 4))
    assert [layer.use_sliding for layer in model.layers] == expected


def test_ghosts_of_one_kind_share_one_cache_entry(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", layers=6))
    cache = Shard(DenseFamily().build(checkpoint.config), LayerSpan(5, 6, 6)).new_cache()
    assert len({id(entry) for entry in cache}) == 2


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    checkpoint = read_checkpoint(path)
    del checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(0, 2, 4))
    with pytest.raises(CheckpointCorrupt, match=r"layers\.1\.mlp\.down_proj\.weight"):
        family.load(shard.model, checkpoint, shard.span, FLOAT32, lambda done, total: None)


def test_a_damaged_layer_of_another_stage_does_not_matter(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    del checkpoint.tensors["model.layers.3.mlp.down_proj.weight"]
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(0, 2, 4))
    family.load(shard.model, checkpoint, shard.span, FLOAT32, lambda done, total: None)


def test_a_surplus_tensor_of_an_owned_layer_is_named(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    mx.save_safetensors(str(path / "model-extra.safetensors"), {"model.layers.1.mlp.unknown.weight": mx.zeros((2,))})
    checkpoint = read_checkpoint(path)
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(0, 2, 4))
    with pytest.raises(CheckpointCorrupt, match=r"model\.layers\.1\.mlp\.unknown"):
        family.load(shard.model, checkpoint, shard.span, FLOAT32, lambda done, total: None)


def test_a_model_with_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    with pytest.raises(ModelUnsupported, match="4 layers and not 9"):
        Shard(DenseFamily().build(checkpoint.config), LayerSpan(0, 2, 9))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "no_such_model"])
def test_what_is_not_dense_is_refused_with_the_reason(tmp_path: Path, model_type: str) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    checkpoint.config["model_type"] = model_type
    assert model_type in (DenseFamily().refusal(checkpoint) or "")


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    checkpoint.config["model_file"] = "evil.py"
    assert "model_file" in (DenseFamily().refusal(checkpoint) or "")
