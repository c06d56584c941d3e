"""The bytes of weights, against the parameters of mlx-lm's modules once a slice is cut out. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.errors import ModelUnsupported
from runtime.inference.loading import choose_family
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily, TensorInfo, read_checkpoint
from runtime.testing.tiny import TINY_MODULES, tiny_config
from runtime.weights import build
from runtime_crossing.family import CrossingFamily
from runtime_dense.family import DenseFamily
from runtime_memory.weights import Weights
from runtime_moe.family import MoeFamily
from tests.weights.checkpoints import loaded_slice, parameters, write
from tests.weights.raw_layouts import STEPS, raw
from tests.weights.test_packed import MODES, awq, quantized

NOT_IMPORTABLE = {"olmo"}
"""It ends the process unless the package ai2-olmo is there."""
FAMILIES: dict[str, ModelFamily] = {"dense": DenseFamily(), "moe": MoeFamily(), "crossing": CrossingFamily()}
DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.uint8: "U8", mx.uint32: "U32", mx.int32: "I32", mx.int64: "I64"}


A_LITTLE_MORE = {"deepseek_v41", "muse_spark", "prism_hadamard_qwen35", "talkie"}
"""They keep some small arrays that no header tells of, or store some that they do not keep: less than 1 %."""


def checkpoint(config: dict[str, Any], weights: Mapping[str, mx.array]) -> Checkpoint:
    """Headers of a checkpoint with these weights."""
    tensors = {
        name: TensorInfo(name, DTYPES[array.dtype], tuple(array.shape), Path("x"), 0, array.nbytes)
        for name, array in weights.items()
    }
    return Checkpoint(Path("x"), config, tensors)


def compare(module: str, config: dict[str, Any], headers: Checkpoint) -> None:
    layers = len(build(config).layers)
    weights = Weights(headers, LoadOptions("float32", dequantize=False))
    for start, stop in pairwise([0, 1, layers - 1, layers]):
        span = LayerSpan(start, stop, layers)
        try:
            family = choose_family(FAMILIES, headers)
            held = Shard(family.build(config, headers.tensors), span, family.layer_calls(config)).nbytes
        except ModelUnsupported as refusal:
            pytest.skip(str(refusal))
        slack = held // 100 if module in A_LITTLE_MORE else 0
        assert abs(weights.of(span).resident - held) <= slack, f"layers {span}"


@pytest.mark.parametrize("module", sorted(set(TINY_MODULES) - NOT_IMPORTABLE))
def test_the_weights_of_any_slice_are_what_the_model_owns_of_it(module: str) -> None:
    config = tiny_config(module)
    compare(module, config, checkpoint(config, parameters(build(config))))


@pytest.mark.parametrize("module", sorted(set(STEPS) & set(TINY_MODULES)))
def test_the_original_layout_needs_the_same(module: str) -> None:
    config = tiny_config(module)
    compare(module, config, checkpoint(config, raw(module, parameters(build(config)), config)))


def held(folder: Path, options: LoadOptions) -> int:
    """Bytes of a whole model, loaded."""
    layers = read_checkpoint(folder).num_layers
    return sum(array.nbytes for array in loaded_slice(folder, 0, layers, layers, options).values())


def counted(folder: Path, options: LoadOptions) -> int:
    headers = read_checkpoint(folder)
    return Weights(headers, options).of(LayerSpan.whole(headers.num_layers)).resident


@pytest.mark.parametrize("dequantize", [False, True], ids=["packed", "expanded"])
@pytest.mark.parametrize("mode", [*MODES, "mixed"])
@pytest.mark.parametrize("module", ["llama", "mixtral"])
def test_weights_that_mlx_packed(tmp_path: Path, module: str, mode: str, dequantize: bool) -> None:
    folder = write(tmp_path / "model", *quantized(tiny_config(module), mode))
    options = LoadOptions("float32", dequantize=dequantize)
    assert counted(folder, options) == held(folder, options)


@pytest.mark.parametrize("dequantize", [False, True], ids=["packed", "expanded"])
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "symmetric"])
def test_weights_that_autoawq_packed(tmp_path: Path, zeros: bool, dequantize: bool) -> None:
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32}
    config = {**tiny_config("llama"), "quantization_config": settings}
    folder = write(tmp_path / "model", config, awq(config, zeros=zeros))
    options = LoadOptions("float32", dequantize=dequantize)
    assert counted(folder, options) == held(folder, options)


@pytest.mark.parametrize("numbered", ["model.layers", "model.kv_reuse_layers"])
def test_a_number_of_thousands_of_digits_is_no_layers(numbered: str) -> None:
    name = f"{numbered}.{'9' * 5000}.mlp.weight"
    tensors = {name: TensorInfo(name, "F32", (4,), Path("w"), 0, 16)}
    weights = Weights(Checkpoint(Path(), {"num_hidden_layers": 2}, tensors), LoadOptions("float32", dequantize=False))
    assert weights.of(LayerSpan.whole(2)).resident == 16
