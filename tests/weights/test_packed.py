"""Quantized checkpoints of every kind that mlx-lm takes load by slices as they do whole."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from runtime.spi import LoadOptions, read_checkpoint
from runtime.testing.tiny import tiny_config
from runtime.weights import packing_refusal
from tests.weights.checkpoints import (
    assert_equal_parts,
    loaded_by_mlx_lm,
    loaded_slice,
    parameters,
    random_model,
    write,
)
from tests.weights.raw_layouts import Weights, raw

EXPANDED = LoadOptions("float32", dequantize=True)
MODES = {
    "4 bits": {"group_size": 32, "bits": 4, "mode": "affine"},
    "8 bits": {"group_size": 32, "bits": 8, "mode": "affine"},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
}


def quantized(config: dict[str, Any], mode: str) -> tuple[dict[str, Any], Weights]:
    """Return a configuration and weights as ``mlx_lm.convert`` writes them; ``mixed`` has two widths and plain ones."""
    model = random_model(config)
    sections: dict[str, Any] = dict(MODES["4 bits" if mode == "mixed" else mode])

    def how(name: str, module: nn.Module) -> Any:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
            return False
        if mode == "mixed" and "down_proj" in name:
            sections[name] = MODES["8 bits"]
            return MODES["8 bits"]
        return not (mode == "mixed" and "o_proj" in name) and "router" not in name

    nn.quantize(model, **MODES["4 bits" if mode == "mixed" else mode], class_predicate=how)
    return {**config, "quantization": sections}, parameters(model)


def slices(folder: Path, layers: int, options: LoadOptions | None = None) -> list[Weights]:
    extra = () if options is None else (options,)
    return [loaded_slice(folder, *span, layers, *extra) for span in pairwise(range(layers + 1))]


@pytest.mark.parametrize("mode", [*MODES, "mixed"])
@pytest.mark.parametrize("module", ["llama", "mixtral", "deepseek_v3", "qwen3_next"])
def test_mlx_s_own_packing(tmp_path: Path, module: str, mode: str) -> None:
    config, weights = quantized(tiny_config(module), mode)
    folder = write(tmp_path / "model", config, weights)
    layers = config["num_hidden_layers"]
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, layers))


@pytest.mark.parametrize("module", ["mixtral", "qwen2_moe", "deepseek"])
def test_packed_experts_that_are_stored_one_by_one(tmp_path: Path, module: str) -> None:
    config, weights = quantized(tiny_config(module), "mixed")
    folder = write(tmp_path / "model", config, raw(module, weights, config))
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, config["num_hidden_layers"]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("module", ["mixtral", "deepseek_v3"])
def test_packed_experts_and_heads_expand_to_what_they_stand_for(tmp_path: Path, module: str, mode: str) -> None:
    config, weights = quantized(tiny_config(module), mode)
    folder = write(tmp_path / "model", config, weights)
    packed = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    assert any("switch_mlp" in name for name in packed)
    expanded = loaded_slice(folder, 0, 4, 4, EXPANDED)
    assert not any(name.endswith(".scales") for name in expanded)
    for name in packed:
        parts = [weights[f"{name}.weight"], weights[f"{name}.scales"], weights.get(f"{name}.biases")]
        exact = mx.dequantize(*parts, **MODES[mode], dtype=mx.float32)
        assert mx.array_equal(expanded[f"{name}.weight"], exact), name


def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    config = {**tiny_config("gpt_oss"), "quantization_config": {"quant_method": "mxfp4"}}
    weights = parameters(random_model(config))
    for name in [name for name in weights if name.endswith("experts.gate_proj.weight")]:
        block = name.removesuffix("gate_proj.weight")
        both = [weights.pop(f"{block}{half}_proj.weight") for half in ("gate", "up")]
        bias = [weights.pop(f"{block}{half}_proj.bias") for half in ("gate", "up")]
        for called, matrix in (
            ("gate_up_proj", mx.stack(both, axis=2).flatten(1, 2)),
            ("down_proj", weights.pop(f"{block}down_proj.weight")),
        ):
            words, scales = mx.quantize(matrix, **MODES["mxfp4"])
            weights[f"{block}{called}_blocks"] = words.view(mx.uint8).reshape(*scales.shape, 16)
            weights[f"{block}{called}_scales"] = scales
        weights[f"{block}gate_up_proj_bias"] = mx.stack(bias, axis=2).flatten(1, 2)
        weights[f"{block}down_proj_bias"] = weights.pop(f"{block}down_proj.bias")
    folder = write(tmp_path / "model", config, weights)
    assert packing_refusal(read_checkpoint(folder), "gpt_oss") is None
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, config["num_hidden_layers"]))


@pytest.mark.parametrize(
    "module", ["deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k25", "minimax", "mimo_v2_flash", "mistral4"]
)
def test_eight_bit_floats_with_block_scales(tmp_path: Path, module: str) -> None:
    config = {**tiny_config(module), "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    model = random_model(config)
    stored = raw(module, parameters(model), config)
    dtypes = {}
    for name in list(stored):
        if re.search(r"(experts\.\d+\.\w+|[qkvo]_(?:a_|b_)?proj)\.weight$", name):
            stored[name] = mx.to_fp8(stored[name])
            stored[f"{name}_scale_inv"] = mx.full([-(-side // 128) for side in stored[name].shape], 0.5)
            dtypes[name] = "F8_E4M3"
    assert dtypes
    folder = write(tmp_path / "model", config, stored, dtypes=dtypes)
    assert packing_refusal(read_checkpoint(folder), module) is None
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, len(model.layers)))


@pytest.mark.parametrize("module", ["deepseek_v3", "kimi_k25", "mistral4"])
def test_matrices_in_four_bit_integers_with_shapes_beside_them(tmp_path: Path, module: str) -> None:
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config = {**tiny_config(module), "quantization_config": settings}
    model = random_model(config)
    stored = raw(module, parameters(model), config)
    for name in [name for name in stored if re.search(r"(experts\.\d+|shared_experts)\.\w+\.weight$", name)]:
        matrix = stored.pop(name)
        words, scales, _ = mx.quantize(matrix, **MODES["4 bits"])
        stored[f"{name}_packed"], stored[f"{name}_scale"] = words.view(mx.int32), scales
        stored[f"{name}_shape"] = mx.array(matrix.shape)
    folder = write(tmp_path / "model", config, stored)
    assert packing_refusal(read_checkpoint(folder), module) is None
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, len(model.layers)))


def test_experts_in_four_bit_floats_that_are_stored_one_by_one(tmp_path: Path) -> None:
    settings = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    config = {**tiny_config("kimi_k3"), "quantization_config": settings}
    model = random_model(config)
    stored = raw("kimi_k3", parameters(model), config)
    for name in [name for name in stored if re.search(r"experts\.\d+\.\w+\.weight$", name)]:
        words, scales = mx.quantize(stored.pop(name), **MODES["mxfp4"])
        stored[f"{name}_packed"], stored[f"{name}_scale"] = words.view(mx.uint8), scales
    folder = write(tmp_path / "model", config, stored)
    assert packing_refusal(read_checkpoint(folder), "kimi_k3") is None
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, len(model.layers)))


def test_experts_in_nvfp4_with_a_scale_for_each(tmp_path: Path) -> None:
    config = {**tiny_config("muse_spark"), "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    stored = raw("muse_spark", parameters(random_model(config)), config)
    dtypes = {}
    for name in [name for name in stored if re.search(r"experts\.(gate_up|down)_proj$", name)]:
        words, scales = mx.quantize(stored[name], **MODES["nvfp4"])
        stored[name] = words.view(mx.uint8)
        stored[f"{name}_weight_scale"] = scales
        experts = words.shape[0]
        stored[f"{name}_weight_scale_2"] = mx.random.uniform(0.5, 1, (experts, 2) if "gate_up" in name else (experts,))
        stored[f"{name}_input_scale"] = mx.ones(experts)
        dtypes[f"{name}_weight_scale"] = "F8_E4M3"
    folder = write(tmp_path / "model", config, stored, dtypes=dtypes)
    assert packing_refusal(read_checkpoint(folder), "muse_spark") is None
    whole = loaded_by_mlx_lm(folder)
    assert any(name.endswith(".global_scale") for name in whole)
    assert_equal_parts(whole, slices(folder, len(random_model(config).layers)))
    expanded = loaded_slice(folder, 0, 4, 4, EXPANDED)
    name = "model.language_model.layers.1.mlp.experts.up_proj"
    exact = [
        mx.dequantize(words, scales, **MODES["nvfp4"], global_scale=scale, dtype=mx.float32)
        for words, scales, scale in zip(*(whole[f"{name}.{part}"] for part in PARTS), strict=True)
    ]
    assert mx.array_equal(expanded[f"{name}.weight"], mx.stack(exact))


PARTS = ("weight", "scales", "global_scale")


def test_eight_and_four_bit_floats_with_power_of_two_scales(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}
    config = {**tiny_config("deepseek_v41"), "quantization_config": settings}
    stored = raw("deepseek_v41", parameters(random_model(config)), config)
    dtypes = {}
    for name in [name for name in stored if re.search(r"(experts\.\d+\.w\d|\.attn\.w[qo]_[ab])\.weight$", name)]:
        rows, columns = stored[name].shape
        single = re.search(r"experts\.\d+", name) is not None  # four bits, a scale for 32 columns of each row
        stored[name] = mx.random.randint(0, 127, (rows, columns // 2 if single else columns)).astype(mx.uint8)
        scale = name.replace(".weight", ".scale")
        stored[scale] = mx.random.randint(120, 130, (rows if single else rows // 32, columns // 32)).astype(mx.uint8)
        dtypes[name], dtypes[scale] = "I8" if single else "F8_E4M3", "F8_E8M0"
    assert dtypes
    folder = write(tmp_path / "model", config, stored, dtypes=dtypes)
    assert packing_refusal(read_checkpoint(folder), "deepseek_v41") is None
    assert_equal_parts(loaded_by_mlx_lm(folder), slices(folder, config["num_hidden_layers"]))


def awq(config: dict[str, Any], *, zeros: bool) -> Weights:
    """Return a Llama's weights with AutoAWQ's packing of random 4-bit values in groups of 32."""
    weights = {name: array.astype(mx.float16) for name, array in parameters(random_model(config)).items()}
    for name in [name for name in weights if re.search(r"layers\.[012]\..*_proj\.weight$", name)]:
        outputs, inputs = weights.pop(name).shape
        module = name.removesuffix(".weight")
        weights[f"{module}.qweight"] = mx.random.randint(-(2**31), 2**31 - 1, (inputs, outputs // 8))
        weights[f"{module}.scales"] = mx.random.uniform(0.01, 0.1, (inputs // 32, outputs)).astype(mx.float16)
        if zeros:
            weights[f"{module}.qzeros"] = mx.random.randint(-(2**31), 2**31 - 1, (inputs // 32, outputs // 8))
    return weights


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "symmetric"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_autoawq_packs(tmp_path: Path, method: str, zeros: bool) -> None:
    settings = {"quant_method": method, "bits": 4, "group_size": 32}
    config = {**tiny_config("llama"), "quantization_config": settings}
    folder = write(tmp_path / "model", config, awq(config, zeros=zeros))
    assert packing_refusal(read_checkpoint(folder), "llama") is None
    whole = loaded_by_mlx_lm(folder)
    assert {array.dtype for name, array in whole.items() if name.endswith("proj.weight")} == {mx.uint32, mx.float32}
    assert_equal_parts(whole, slices(folder, 4))


@pytest.mark.parametrize(
    ("module", "settings", "reason"),
    [
        ("llama", {"quantization_config": {"quant_method": "awq", "bits": 8}}, "8 bits"),
        ("llama", {"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ("llama", {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}, "bitsandbytes"),
        ("mixtral", {"quantization_config": {"quant_method": "fp8"}}, "fp8, which is not read for mixtral"),
        ("ministral3", {"quantization_config": {"quant_method": "fp8"}}, "fp8, which is not read for ministral3"),
        ("llama", {"quantize_activations": True}, "activations"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, module: str, settings: dict[str, Any], reason: str
) -> None:
    config = {**tiny_config(module), **settings}
    checkpoint = read_checkpoint(write(tmp_path / "model", config, {"x": mx.zeros(1)}))
    assert reason in (packing_refusal(checkpoint, module) or "")


def test_groups_out_of_order_are_refused(tmp_path: Path) -> None:
    config = {**tiny_config("llama"), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    folder = write(tmp_path / "model", config, {"model.layers.0.mlp.up_proj.g_idx": mx.zeros(64)})
    assert "g_idx" in (packing_refusal(read_checkpoint(folder), "llama") or "")
