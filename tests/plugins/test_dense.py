"""The dense family loads exactly its slice, or says what is wrong with the files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.models import tiny_llama
from runtime.weights import expanding
from runtime_dense.family import DenseFamily

PLAIN = LoadOptions("float32", dequantize=False)
EXPANDED = LoadOptions("float32", dequantize=True)
TOKENS = mx.array([list(range(5, 25))])


def load(checkpoint: Checkpoint, options: LoadOptions = PLAIN, start: int = 0, stop: int = 4) -> Any:
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(start, stop, checkpoint.num_layers))
    family.load(shard.model, checkpoint, shard.span, options, lambda done, total: None)
    return shard.model


def rewrite(folder: Path, **tensors: mx.array | None) -> Checkpoint:
    """Change some tensors of a checkpoint; None takes one out."""
    file = folder / "model.safetensors"
    arrays: Any = mx.load(str(file))
    arrays = {name: array + 0 for name, array in arrays.items()}
    mx.eval(arrays)
    for name, array in tensors.items():
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    mx.save_safetensors(str(file), arrays)
    return read_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_kept_in_the_type_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    model = load(read_checkpoint(tiny_llama(tmp_path / "model")), LoadOptions(dtype, dequantize=False))
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {getattr(mx, dtype)}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_expand_to_what_they_stand_for(
    tmp_path: Path, bits: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expanding, "BLOCK_ELEMENTS", 1000)  # several blocks, the last one shorter
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", quantize=bits, tied=tied))
    packed, expanded = load(checkpoint, PLAIN), load(checkpoint, EXPANDED)
    kinds = {type(module) for _, module in expanded.named_modules()}
    assert not kinds & {nn.QuantizedLinear, nn.QuantizedEmbedding}
    weights = dict(tree_flatten(expanded.parameters()))
    for name, module in packed.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            exact = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
            assert mx.array_equal(weights[f"{name}.weight"], exact), name
    assert np.allclose(np.asarray(packed(TOKENS)), np.asarray(expanded(TOKENS)), atol=1e-3)


@pytest.mark.parametrize("bits", [None, 3, 4, 6])
@pytest.mark.parametrize("dequantize", [True, False])
def test_progress_grows_to_the_bytes_in_memory(tmp_path: Path, bits: int | None, dequantize: bool) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", quantize=bits))
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(1, 3, 4))
    heard: list[tuple[int, int]] = []
    options = LoadOptions("float32", dequantize=dequantize)
    family.load(shard.model, checkpoint, shard.span, options, lambda done, total: heard.append((done, total)))
    done = [each for each, _ in heard]
    assert done == sorted(done)
    assert {total for _, total in heard} == {done[-1]} == {shard.nbytes}


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    checkpoint = rewrite(tiny_llama(tmp_path / "model"), **{"model.layers.1.mlp.up_proj.weight": mx.zeros((3, 64))})
    with pytest.raises(CheckpointCorrupt, match=r"layers\.1\.mlp\.up_proj"):
        load(checkpoint)


def test_a_surplus_bias_is_named(tmp_path: Path) -> None:
    checkpoint = rewrite(tiny_llama(tmp_path / "model"), **{"model.layers.1.mlp.up_proj.bias": mx.zeros((128,))})
    with pytest.raises(CheckpointCorrupt, match=r"layers\.1\.mlp\.up_proj\.bias"):
        load(checkpoint)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight"]
)
def test_a_missing_tensor_is_named_by_the_stage_that_owns_it(tmp_path: Path, name: str) -> None:
    checkpoint = rewrite(tiny_llama(tmp_path / "model", tied=False), **{name: None})
    owner, other = ((0, 2), (2, 4)) if "embed" in name else ((2, 4), (0, 2))
    load(checkpoint, start=other[0], stop=other[1])
    with pytest.raises(CheckpointCorrupt, match=re.escape(name)):
        load(checkpoint, start=owner[0], stop=owner[1])


@pytest.mark.parametrize(
    "scales",
    [mx.zeros((128, 0)), mx.zeros((128, 3)), mx.zeros((7, 2)), mx.zeros((2,)), mx.zeros(())],
    ids=lambda scales: str(scales.shape),
)
def test_scales_that_do_not_fit_their_weights_are_refused(tmp_path: Path, scales: mx.array) -> None:
    folder = tiny_llama(tmp_path / "model", quantize=4)
    checkpoint = rewrite(folder, **{"model.layers.1.mlp.up_proj.scales": scales})
    for options in (PLAIN, EXPANDED):
        with pytest.raises(CheckpointCorrupt):
            load(checkpoint, options)


def test_rotary_frequencies_that_old_checkpoints_carry_do_not_matter(tmp_path: Path) -> None:
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": mx.zeros((8,)) for layer in range(4)}
    checkpoint = rewrite(tiny_llama(tmp_path / "model"), **frequencies)
    for start, stop in ((0, 4), (0, 2), (2, 4)):
        load(checkpoint, start=start, stop=stop)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": None},
        {"rms_norm_eps": "small"},
        {"hidden_size": "wide"},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"rope_scaling": {"type": "no such scaling"}},
        {"layer_types": ["sliding_attention"] * 4},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_a_configuration_without_sense_is_a_fault_and_no_traceback(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tiny_llama(tmp_path / "model")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ModelUnsupported, CheckpointCorrupt)):
        load(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "8 bits"),
        ({"model_file": "code.py"}, "code of its own"),
        ({"model_type": "phi3small", "vocab_size": 320}, "writes to the logits of 100352 tokens"),
        ({"model_type": "../llama"}, "dense family"),
        ({"model_type": "os"}, "dense family"),
    ],
)
def test_what_it_does_not_run_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    checkpoint.config.update(change)
    assert reason in (DenseFamily().refusal(checkpoint) or "")


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_what_it_runs_is_not_refused(tmp_path: Path, model_type: str) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model"))
    checkpoint.config["model_type"] = model_type
    assert DenseFamily().refusal(checkpoint) is None


def test_naming_the_plugin_imports_no_mlx() -> None:
    program = "import runtime_dense, runtime_dense.family, sys; sys.exit('mlx.core' in sys.modules)"
    assert run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
