"""The failures of mlx-lm's own loading on parts of a raw mixture of experts, and that they do not happen here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.errors import CheckpointCorrupt
from runtime.spi import LayerSpan, TensorInfo, read_checkpoint
from runtime.testing.tiny import tiny_config
from runtime.weights import build, load
from runtime.weights.layers import expert_of, layer_of
from runtime.weights.reading import MAX_EXPERTS, stand_ins
from tests.weights.checkpoints import (
    PLAIN,
    assert_equal_parts,
    loaded_slice,
    parameters,
    random_model,
    slice_model,
    write,
)
from tests.weights.raw_layouts import raw

LAYERS, EXPERTS = 24, 8
CONFIG: dict[str, Any] = {
    **tiny_config("mixtral"),
    "num_hidden_layers": LAYERS,
    "num_local_experts": EXPERTS,
    "hidden_size": 16,
    "intermediate_size": 16,
    "head_dim": 4,
}


def is_stored(name: str, first: int, last: int, experts: int) -> bool:
    """Whether a file that ends in the middle of layer ``last`` holds a tensor: only some of its experts."""
    layer, expert = layer_of(name), expert_of(name)
    return layer is None or first <= layer < last or (layer == last and expert is not None and expert < experts)


@pytest.fixture(scope="module")
def whole() -> dict[str, mx.array]:
    return parameters(random_model(CONFIG))


def test_mlx_lm_fails_on_a_file_with_some_experts_of_the_next_layer(whole: dict[str, mx.array]) -> None:
    stored = raw("mixtral", whole, CONFIG)
    file = {name: array for name, array in stored.items() if is_stored(name, 0, 19, 5)}
    with pytest.raises(KeyError, match=r"^'model\.layers\.19\.block_sparse_moe\.experts\.5\.w1\.weight'$"):
        build(CONFIG).sanitize(file)


def test_mlx_lm_leaves_random_experts_in_a_slice_without_layer_0(whole: dict[str, mx.array]) -> None:
    stored = raw("mixtral", whole, CONFIG)
    model = build(CONFIG)
    slice_of_it = {name: array for name, array in stored.items() if is_stored(name, 12, 24, 0)}
    model.load_weights(list(model.sanitize(slice_of_it).items()), strict=False)
    name = "model.layers.15.block_sparse_moe.switch_mlp.up_proj.weight"
    assert not mx.allclose(parameters(model)[name], whole[name])


@pytest.mark.parametrize(
    ("first", "start", "stop", "last"),
    [(0, 0, 19, 19), (0, 7, 19, 19), (12, 12, 19, 19), (1, 1, 2, 2), (23, 23, 24, 24)],
)
def test_a_slice_of_such_files_loads(
    tmp_path: Path, whole: dict[str, mx.array], first: int, start: int, stop: int, last: int
) -> None:
    stored = raw("mixtral", whole, CONFIG)
    files = {name: array for name, array in stored.items() if is_stored(name, first, last, 5)}
    part = loaded_slice(write(tmp_path / "model", CONFIG, files), start, stop, LAYERS)
    assert {layer_of(name) for name in part} == {None, *range(start, stop)}
    assert_equal_parts({name: array for name, array in whole.items() if name in part}, [part])


@pytest.mark.parametrize("kept", [r"experts\.7\.w3", r"experts\.[67]\.", r"experts\.\d\.w2", r"gate"])
def test_a_slice_of_files_with_a_remainder_of_layer_0_loads(
    tmp_path: Path, whole: dict[str, mx.array], kept: str
) -> None:
    stored = raw("mixtral", whole, CONFIG)
    files = {name: array for name, array in stored.items() if layer_of(name) != 0 or re.search(kept, name)}
    part = loaded_slice(write(tmp_path / "model", CONFIG, files), 1, 3, LAYERS)
    assert_equal_parts({name: array for name, array in whole.items() if name in part}, [part])


def test_a_slice_of_files_that_end_in_the_middle_of_a_layer_names_what_is_missing(
    tmp_path: Path, whole: dict[str, mx.array]
) -> None:
    stored = raw("mixtral", whole, CONFIG)
    files = {name: array for name, array in stored.items() if is_stored(name, 0, 19, 5)}
    with pytest.raises(CheckpointCorrupt, match=r"layers\.19\.block_sparse_moe\.experts\.5\.w1"):
        loaded_slice(write(tmp_path / "model", CONFIG, files), 0, 20, LAYERS)


def test_files_without_a_tensor_of_the_slice_are_not_opened(tmp_path: Path, whole: dict[str, mx.array]) -> None:
    folder = write(tmp_path / "model", CONFIG, raw("mixtral", whole, CONFIG), files=24)
    checkpoint = read_checkpoint(folder)
    model = slice_model(checkpoint, 3, 5, LAYERS)
    needed = {tensor.file for tensor in checkpoint.tensors.values() if layer_of(tensor.name) in (None, 3, 4)}
    for file in {tensor.file for tensor in checkpoint.tensors.values()} - needed:
        file.unlink()
    assert len(needed) < 24
    load(model, checkpoint, LayerSpan(3, 5, LAYERS), PLAIN, lambda done, total: None)
    part = parameters(model)
    assert_equal_parts({name: array for name, array in whole.items() if name in part}, [part])


def test_an_expert_that_no_layer_has_is_refused_before_any_stand_in_is_made() -> None:
    names = [f"model.layers.1.mlp.experts.{number}.w1.weight" for number in (0, 1, 999_999)]
    with pytest.raises(CheckpointCorrupt, match=r"experts\.999999\.w1\.weight is of expert 999999"):
        stand_ins(tensors(names), None)


def test_more_tensors_of_experts_than_any_layer_has_are_refused() -> None:
    names = [f"model.layers.1.mlp.experts.{MAX_EXPERTS - 1}.w{number}.weight" for number in range(100)]
    with pytest.raises(CheckpointCorrupt, match=r"4096 experts of 100 tensors each"):
        stand_ins(tensors(names), None)


def tensors(names: list[str]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (1,), Path("model.safetensors"), 0, 4) for name in names}
