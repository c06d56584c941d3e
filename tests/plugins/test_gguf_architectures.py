"""Every architecture that is converted from GGUF gives the model that it was made from, bit for bit.

A tiny model of mlx-lm with random weights is written as llama.cpp's converter would write it, converted back, and
loaded by mlx-lm, strictly. Then every parameter is compared, and the logits, which depend on the settings too; so the
settings here are unlike any default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from runtime.errors import ModelNotFound
from runtime.spi import LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.gguf_export import ARCHITECTURES, export
from runtime_dense.family import DenseFamily
from runtime_gguf.architectures import ARCHITECTURES as CONVERTED
from runtime_gguf.source import GgufSource
from tests.plugins.gguf_models import MODELS, build_model, next_token_logits, weights_of


def _converted(tmp_path: Path, config: dict[str, Any], weights: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    from mlx_lm.utils import load_model

    file = export(tmp_path / "m.gguf", config, weights, **options)
    folder = GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None)
    loaded: tuple[Any, dict[str, Any]] = load_model(folder)
    return loaded


def test_the_list_of_architectures_is_the_one_that_is_tested() -> None:
    assert {gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]] for config in MODELS.values()} == set(CONVERTED)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, config: dict[str, Any]) -> None:
    original = build_model(config)
    weights = weights_of(original)
    model, _ = _converted(tmp_path, config, weights)
    found = weights_of(model)
    assert found.keys() == weights.keys()
    for name, expected in weights.items():
        if config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
            # One was added and taken off again; what the norm multiplies by is the same to the last bit.
            np.testing.assert_array_equal(1 + found[name], 1 + expected, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
    np.testing.assert_array_equal(next_token_logits(model), next_token_logits(original))


def _values(module: Any) -> NDArray[np.float32]:
    """Return the weight of a linear layer, packed or not."""
    import mlx.core as mx

    if "scales" not in module:
        return np.array(module["weight"].astype(mx.float32))
    sides = [module[side] for side in ("scales", "biases") if side in module]
    if module.mode == "affine":
        sides = [side.astype(mx.float32) for side in sides]
    plain = mx.dequantize(module["weight"], *sides, group_size=32, bits=module.bits, mode=module.mode)
    return np.array(plain.astype(mx.float32))


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "MXFP4", "Q5_1"])
def test_weights_are_worth_what_the_file_says(tmp_path: Path, name: str, kind: str) -> None:
    config = MODELS[name]
    weights = weights_of(build_model(config))
    model, found = _converted(tmp_path, config, weights, kind=kind)
    packed = kind in ("Q4_0", "Q4_1", "Q8_0", "MXFP4")
    assert found.get("quantization", {}).get("mode") == (("mxfp4" if kind == "MXFP4" else "affine") if packed else None)
    encoding = GGMLQuantizationType[kind]
    compared = 0
    for path, module in model.named_modules():
        expected = weights.get(f"{path}.weight")
        if expected is not None and expected.ndim > 1 and not path.endswith((".gate", ".router")):
            assert ("scales" in module) == packed, path
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, encoding), encoding)
            if kind == "Q5_1":
                expected = expected.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(_values(module), expected, err_msg=path)
            compared += 1
    assert compared > 3 * config["num_hidden_layers"]


def test_a_checkpoint_of_experts_says_what_it_is_made_of(tmp_path: Path) -> None:
    config = MODELS["mixtral"]
    file = export(tmp_path / "m.gguf", config, weights_of(build_model(config)), kind="Q8_0")
    checkpoint = read_checkpoint(GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None))
    stacked = "model.layers.1.block_sparse_moe.switch_mlp.down_proj"
    assert checkpoint.tensors[f"{stacked}.weight"].shape == (4, 64, 96 * 8 // 32)
    assert checkpoint.tensors[f"{stacked}.scales"].shape == (4, 64, 96 // 32)
    assert checkpoint.model_type == "mixtral"


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3", "starcoder2"])
def test_slices_of_a_converted_model_load_strictly_and_compute_what_the_whole_does(tmp_path: Path, name: str) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from runtime.inference.loading import load_shard

    config = MODELS[name]
    file = export(tmp_path / "m.gguf", config, weights_of(build_model(config)), kind="Q8_0")
    checkpoint = read_checkpoint(GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None))
    families, options = {"dense": DenseFamily()}, LoadOptions(dtype="float32", dequantize=True)

    def load(start: int, stop: int) -> Any:
        return load_shard(families, checkpoint, LayerSpan(start, stop, 3), options, lambda done, total: None)

    whole, (first, last) = load(0, 3), (load(0, 1), load(1, 3))
    tokens = mx.array([list(range(20, 60))])
    expected = whole.model(tokens, cache=make_prompt_cache(whole.model))
    found = last.forward(first.forward(tokens, first.new_cache()), last.new_cache())
    assert mx.array_equal(found, expected).item()


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    config = MODELS["glm4_moe"]
    deeper = {**config, "num_hidden_layers": 4}
    weights = weights_of(build_model(deeper))
    model, found = _converted(tmp_path, deeper, weights, keys={"{arch}.nextn_predict_layers": 1})
    assert found["num_hidden_layers"] == 3
    kept = weights_of(model)
    assert kept.keys() == {name for name in weights if ".layers.3." not in name}
    assert all(np.array_equal(kept[name], weights[name]) for name in kept)


def test_a_model_in_several_files_is_one_model(tmp_path: Path) -> None:
    original = build_model(MODELS["qwen3"])
    weights = weights_of(original)
    model, _ = _converted(tmp_path, MODELS["qwen3"], weights, split=10)
    np.testing.assert_array_equal(next_token_logits(model), next_token_logits(original))

    source = GgufSource(tmp_path / "cache", (tmp_path,), embedded=())
    files = sorted(tmp_path.glob("*.gguf"))
    (listing,) = source.local()
    assert (listing.name, listing.bytes) == (files[0].name, sum(file.stat().st_size for file in files))
    assert listing.path == source.fetch(str(files[2]), lambda progress: None), "any of them names the model"
    files[1].rename(tmp_path / "away")
    assert source.local() == []
    with pytest.raises(ModelNotFound, match=r"-00002-of-.* is not beside it"):
        source.fetch(files[0].name, lambda progress: None)
