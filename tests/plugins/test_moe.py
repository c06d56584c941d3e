"""The family of mixtures of experts: what it takes, and what stages loaded from raw files compute."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from subprocess import run
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from runtime.inference.loading import load_shard
from runtime.inference.shard import Shard
from runtime.spi import LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.tiny import tiny_config
from runtime_moe.family import MoeFamily
from tests.weights.checkpoints import parameters, random_model, write
from tests.weights.raw_layouts import raw

PLAIN = LoadOptions("float32", dequantize=False)
CHUNKS = [list(range(5, 25)), [7], [9], list(range(12))]


def stage(folder: Path, start: int, stop: int, options: LoadOptions = PLAIN, heard: Any = None) -> Shard:
    checkpoint = read_checkpoint(folder)
    span = LayerSpan(start, stop, checkpoint.num_layers)
    return load_shard({"moe": MoeFamily()}, checkpoint, span, options, heard or (lambda done, total: None))


def write_raw(folder: Path, module: str, *, packed: bool = False) -> tuple[Path, int]:
    config = tiny_config(module)
    model = random_model(config)
    if packed:
        settings = {"group_size": 32, "bits": 4, "mode": "affine"}
        nn.quantize(model, **settings, class_predicate=lambda name, _: name.rpartition(".")[2].endswith("_proj"))
        config["quantization"] = settings
    return write(folder, config, raw(module, parameters(model), config)), len(model.layers)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("module", ["mixtral", "deepseek", "qwen2_moe"])
def test_stages_loaded_from_raw_files_compute_what_mlx_lm_computes(tmp_path: Path, module: str, packed: bool) -> None:
    folder, layers = write_raw(tmp_path / "model", module, packed=packed)
    whole, _ = load_model(folder)
    stages = [stage(folder, *span) for span in pairwise([0, 1, 3, layers])]
    cache, caches = make_prompt_cache(whole), [shard.new_cache() for shard in stages]
    for chunk in CHUNKS:
        hidden = mx.array([chunk])
        expected = whole(hidden, cache=cache)
        for shard, own in zip(stages, caches, strict=True):
            hidden = shard.forward(hidden, own)
        assert mx.array_equal(hidden, expected)


def test_a_stage_holds_its_layers_and_the_endpoints_beside_them(tmp_path: Path) -> None:
    folder, layers = write_raw(tmp_path / "model", "mixtral")
    owned = [parameters(stage(folder, *span).model).keys() for span in pairwise([0, 1, 3, layers])]
    assert [any("embed_tokens" in name for name in names) for names in owned] == [True, False, False]
    assert [any("lm_head" in name for name in names) for names in owned] == [False, False, True]
    assert not owned[0] & owned[1]


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_progress_grows_to_the_bytes_in_memory(tmp_path: Path, packed: bool, dequantize: bool) -> None:
    folder, _ = write_raw(tmp_path / "model", "mixtral", packed=packed)
    heard: list[tuple[int, int]] = []
    shard = stage(folder, 1, 3, LoadOptions("float32", dequantize), lambda done, total: heard.append((done, total)))
    done = [each for each, _ in heard]
    assert done == sorted(done)
    assert {total for _, total in heard} == {done[-1]} == {shard.nbytes}


def test_a_routers_bias_is_not_narrowed(tmp_path: Path) -> None:
    folder, layers = write_raw(tmp_path / "model", "deepseek_v3")
    loaded = parameters(stage(folder, 1, layers, LoadOptions("bfloat16", dequantize=False)).model)
    precise = {name for name, array in loaded.items() if array.dtype == mx.float32}
    assert precise == {name for name in loaded if name.endswith("e_score_correction_bias")}
    assert precise


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "../mixtral"}, "../mixtral"),
        ({"model_file": "code.py"}, "code of its own"),
        ({"quantization_config": {"quant_method": "fp8"}}, "packed by fp8"),
    ],
)
def test_what_it_does_not_run_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder, _ = write_raw(tmp_path / "model", "mixtral")
    checkpoint = read_checkpoint(folder)
    assert MoeFamily().refusal(checkpoint) is None
    checkpoint.config.update(change)
    assert reason in (MoeFamily().refusal(checkpoint) or "")


@pytest.mark.parametrize(
    ("model_type", "architecture", "module"),
    [
        ("kimi_k2", "DeepseekV3ForCausalLM", "deepseek_v3"),
        ("bailing_hybrid", "BailingMoeV3ForCausalLM", "bailing_moe_v3"),
    ],
)
def test_types_that_share_a_module_are_taken(tmp_path: Path, model_type: str, architecture: str, module: str) -> None:
    config = {**tiny_config(module), "model_type": model_type, "architectures": [architecture]}
    model = random_model(config)
    assert type(model).__module__ == f"mlx_lm.models.{module}"
    folder = write(tmp_path / "model", config, raw(module, parameters(model), config))
    assert MoeFamily().refusal(read_checkpoint(folder)) is None


def test_naming_the_plugin_imports_no_mlx() -> None:
    program = "import runtime_moe, runtime_moe.family, sys; sys.exit('mlx.core' in sys.modules)"
    assert run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
