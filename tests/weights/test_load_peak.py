"""What a load holds at its peak, as MLX counts it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.spi import LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.tiny import tiny_config
from runtime.weights import load
from tests.weights.checkpoints import parameters, random_model, slice_model, write
from tests.weights.raw_layouts import raw

WIDE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "vocab_size": 64,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
}
LIMIT = 1.2
"""Of what the slice holds afterwards."""


def write_raw(folder: Path, module: str, stored: mx.Dtype, *, packed: bool = False) -> int:
    """Write a raw checkpoint whose experts outweigh the rest, and return its number of layers.

    ``packed`` experts are 8-bit floats, with a scale for each block of 128 x 128.
    """
    config = {**tiny_config(module), **WIDE}
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **WIDE}
    model = random_model(config)
    weights = {name: array.astype(stored) for name, array in parameters(model).items()}
    weights = raw(module, weights, config)
    if packed:
        config["quantization_config"] = {"quant_method": "fp8"}
        for name in [name for name in weights if ".experts." in name]:
            weights[f"{name}_scale_inv"] = mx.ones([-(-side // 128) for side in weights[name].shape])
            weights[name] = mx.to_fp8(weights[name])
    write(folder, config, weights)
    return len(model.layers)


def peak_ratio(folder: Path, start: int, stop: int, total: int, dtype: str) -> float:
    """Load a slice; return the most that was held meanwhile, in terms of what is held afterwards."""
    checkpoint = read_checkpoint(folder)
    model = slice_model(checkpoint, start, stop, total)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    options = LoadOptions(dtype, dequantize=False)
    load(model, checkpoint, LayerSpan(start, stop, total), options, lambda done, total: None)
    size = sum(array.nbytes for array in parameters(model).values())
    assert size > 1 << 18
    assert mx.get_active_memory() - before < 1.01 * size
    return float((mx.get_peak_memory() - before) / size)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(mx.float32, "float32"), (mx.float32, "bfloat16"), (mx.bfloat16, "float32"), (mx.bfloat16, "bfloat16")],
    ids=str,
)
@pytest.mark.parametrize(("module", "layers"), [("mixtral", 1), ("mixtral", 3), ("kimi_linear", 1), ("nemotron_h", 4)])
def test_experts_stored_one_by_one_are_never_twice_in_memory(
    tmp_path: Path, module: str, layers: int, stored: mx.Dtype, dtype: str
) -> None:
    total = write_raw(tmp_path / "model", module, stored)
    assert peak_ratio(tmp_path / "model", total - layers, total, total, dtype) <= LIMIT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_in_eight_bit_floats_are_unpacked_one_by_one(tmp_path: Path, dtype: str) -> None:
    total = write_raw(tmp_path / "model", "deepseek_v3", mx.bfloat16, packed=True)
    assert peak_ratio(tmp_path / "model", total - 1, total, total, dtype) <= LIMIT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("module", ["qwen3_5_moe", "mistral4"])
def test_fused_experts_are_never_twice_in_memory(tmp_path: Path, module: str, dtype: str) -> None:
    total = write_raw(tmp_path / "model", module, mx.bfloat16)
    assert peak_ratio(tmp_path / "model", total - 2, total, total, dtype) <= LIMIT
