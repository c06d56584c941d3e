"""GGUF files that are wrong, or mean what mlx-lm's model would ignore, are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.spi import read_checkpoint
from runtime.testing.gguf_export import export
from runtime_gguf.source import GgufSource
from tests.plugins.gguf_models import MODELS, build_model, weights_of

_KEYS = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_gating_func",
    "expert_group_count",
    "expert_shared_count",
    "expert_used_count",
    "feed_forward_length",
    "leading_dense_block_count",
    "logit_scale",
    "nextn_predict_layers",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
]


def test_files_that_are_not_of_one_model_are_refused(tmp_path: Path) -> None:
    config = MODELS["qwen3"]
    export(tmp_path / "m.gguf", config, weights_of(build_model(config)), split=20)
    first, second = sorted(tmp_path.glob("*.gguf"))
    alone = first.rename(tmp_path / "alone.gguf")

    def fetch(file: Path) -> None:
        GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None)

    with pytest.raises(CheckpointCorrupt, match=r"file 0 \(from 0\) of 2, and by its name it is file 0 of 1"):
        fetch(alone)
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointCorrupt, match=r"file 1 \(from 0\) of 2, and by its name it is file 0 of 2"):
        fetch(first)
    first.write_bytes(alone.read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    deeper = {**config, "num_hidden_layers": 4}
    longer = export(other / "m.gguf", deeper, weights_of(build_model(deeper)), split=24)
    longer.with_name("m-00002-of-00002.gguf").rename(second)
    with pytest.raises(CheckpointCorrupt, match=r"in another file|claims"):
        fetch(first)


@pytest.mark.parametrize(
    ("name", "keys", "fault", "message"),
    [
        (
            "gemma",
            {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 2.0},
            ModelUnsupported,
            "linear",
        ),
        ("gemma3_text", {"{arch}.final_logit_softcapping": 30.0}, ModelUnsupported, "softcapping = 30"),
        ("gemma3_text", {"{arch}.attention.sliding_window": 0}, ModelUnsupported, "without a sliding window"),
        ("mixtral", {"{arch}.rope.scaling.type": "yarn"}, CheckpointCorrupt, "yarn and a factor of 0"),
        ("qwen2", {"{arch}.attention.key_length": 32}, ModelUnsupported, "heads of 32"),
        ("qwen2", {"{arch}.rope.scaling.yarn_ext_factor": 0.5}, ModelUnsupported, "ext_factor = 0.5"),
        ("qwen3_moe", {"{arch}.expert_weights_scale": 2.5}, ModelUnsupported, "expert_weights_scale = 2.5"),
        ("olmo3", {"{arch}.rope.freq_base_swa": 77.0}, ModelUnsupported, "freq_base_swa = 77"),
        (
            "cohere2",
            {"{arch}.attention.sliding_window_pattern": [True, False, False, True, True]},
            ModelUnsupported,
            "no regular",
        ),
        ("phi3", {"{arch}.rope.dimension_count": 17}, CheckpointCorrupt, "rotates 17 of 16"),
        ("phi3", {"{arch}.rope.scaling.original_context_length": 1}, CheckpointCorrupt, "context of 1"),
        ("phi3", {"{arch}.rope.scaling.attn_factor": 3.0}, ModelUnsupported, "attn_factor = 3"),
        ("granite", {"{arch}.rope.scaling.finetuned": False}, ModelUnsupported, "without rotary"),
        ("stablelm", {"{arch}.use_parallel_residual": True}, ModelUnsupported, "side by side"),
        ("deepseek_v3", {"{arch}.expert_gating_func": 1}, ModelUnsupported, "sigmoid"),
        ("qwen3_moe", {"{arch}.expert_gating_func": 2}, ModelUnsupported, "softmax"),
        ("qwen3_moe", {"{arch}.expert_weights_norm": False}, ModelUnsupported, "weights experts otherwise"),
        ("qwen3_moe", {"{arch}.expert_group_count": 2}, ModelUnsupported, "expert_group_count = 2"),
        ("dots1", {"{arch}.expert_group_count": 3}, CheckpointCorrupt, "3 groups"),
        ("glm4_moe", {"{arch}.nextn_predict_layers": 3}, CheckpointCorrupt, "3 layers, 3 of them"),
        ("lfm2", {"{arch}.attention.head_count_kv": [0, 2, 0, 1]}, CheckpointCorrupt, "different numbers"),
        ("lfm2", {"{arch}.attention.head_count_kv": [0, 2, 0]}, CheckpointCorrupt, "for each layer"),
        ("lfm2", {"{arch}.attention.head_count_kv": 2}, CheckpointCorrupt, "lacks the tensor blk.0.attn_q.weight"),
        (
            "lfm2",
            {"{arch}.block_count": 2**32 - 1, "{arch}.attention.head_count_kv": 2},
            CheckpointCorrupt,
            "each layer",
        ),
        ("gpt_oss", {"{arch}.expert_used_count": 5}, CheckpointCorrupt, "uses 5 experts of 4"),
    ],
)
def test_what_the_model_would_ignore_is_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], fault: type[Exception], message: str
) -> None:
    config = MODELS[name]
    file = export(tmp_path / "m.gguf", config, weights_of(build_model(config)), keys=keys)
    with pytest.raises(fault, match=message):
        GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None)


_WEIGHTS: dict[str, Any] = {}


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_metadata_of_nonsense_is_converted_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(MODELS)))
    config = MODELS[name]
    if name not in _WEIGHTS:
        _WEIGHTS[name] = weights_of(build_model(config))
    odd = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]),
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-38, 3e38, float("inf"), float("nan")]),
        st.sampled_from(["", "linear", "yarn", "longrope", "none"]),
        st.sampled_from([[1, 1, 1], [0, 1, 2], [0.5], ["a"]]),
    )
    keys = data.draw(st.dictionaries(st.sampled_from(_KEYS), odd, min_size=1, max_size=4))
    folder = tmp_path_factory.mktemp("nonsense")
    file = export(folder / "m.gguf", config, _WEIGHTS[name], keys={f"{{arch}}.{key}": keys[key] for key in keys})
    try:
        converted = GgufSource(folder / "cache").fetch(str(file), lambda progress: None)
    except (CheckpointCorrupt, ModelUnsupported):
        return  # any other exception fails the test
    read_checkpoint(converted)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return files with experts, with parts of several shapes, and with blocks of several sizes."""
    folder = tmp_path_factory.mktemp("sound")
    kinds = {"mixtral": "Q8_0", "deepseek_v3": "Q4_1", "gpt_oss": "MXFP4", "phi3": "Q5_1", "gemma3_text": "BF16"}
    return [
        export(folder / name, MODELS[name], weights_of(build_model(MODELS[name])), kind=kind).read_bytes()
        for name, kind in kinds.items()
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_file_of_any_shape_is_converted_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sound: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(sound)))
    described = content.index(b"output_norm.weight")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, described + 3000))
        value = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(value)] = value
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(content)
    try:
        converted = GgufSource(folder / "cache").fetch(str(folder / "m.gguf"), lambda progress: None)
    except (CheckpointCorrupt, ModelUnsupported):
        return  # any other exception fails the test
    read_checkpoint(converted)
