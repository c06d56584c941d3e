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
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CheckpointCorrupt, ModelNotFound, ModelUnsupported
from runtime.spi import LayerSpan, LoadOptions, read_checkpoint
from runtime.testing.gguf_export import ARCHITECTURES, export
from runtime.testing.gguf_files import TOKENS
from runtime_dense.family import DenseFamily
from runtime_gguf.architectures import ARCHITECTURES as CONVERTED
from runtime_gguf.source import GgufSource

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 1024,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
_RMS = {**_BASE, "rms_norm_eps": 3e-3}
_LINEAR = {"type": "linear", "rope_type": "linear", "factor": 4.0}
_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 24.0,
    "beta_slow": 2.0,
}
_GEMMA = {**_RMS, "head_dim": 24, "tie_word_embeddings": True}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "rms_norm_eps": 1e-6,  # two norms of mlx-lm's model have no other
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_RMS, "model_type": "llama", "head_dim": 24, "rope_scaling": _LINEAR},
    "llama with biases": {**_RMS, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, yarn, tied": {**_RMS, "model_type": "llama", "rope_scaling": _YARN, "tie_word_embeddings": True},
    "mixtral": {**_RMS, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 3},
    "qwen2": {**_RMS, "model_type": "qwen2", "rope_scaling": _YARN},
    "qwen2_moe": {
        **_RMS,
        **_EXPERTS,
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3": {**_RMS, "model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "qwen3_moe": {
        **_RMS,
        **_EXPERTS,
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # GGUF does not hold Gemma's first two rope bases.
    "gemma": {**_GEMMA, "model_type": "gemma", "rope_theta": 10000.0},
    "gemma2": {
        **_GEMMA,
        "model_type": "gemma2",
        "rope_theta": 10000.0,
        "attn_logit_softcapping": 7.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
    },
    "gemma3_text": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_local_base_freq": 700.0,
        "rope_scaling": _LINEAR,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
    },
    "phi3": {
        **_RMS,
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
            "short_factor": [1.0, 1.0, 1.0, 1.25, 1.5, 2.0],
        },
    },
    "phi3, short, tied": {**_RMS, "model_type": "phi3", "tie_word_embeddings": True},
    "smollm3": {**_RMS, "model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": True},
    "granite": {
        **_RMS,
        "model_type": "granite",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 1.5,
    },
    "olmo2": {**_RMS, "model_type": "olmo2"},
    "olmoe": {**_RMS, "model_type": "olmoe", "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
    "glm4": {
        **_RMS,
        "model_type": "glm4",
        "head_dim": 24,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "cohere": {
        **_BASE,
        "model_type": "cohere",
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "tie_word_embeddings": True,
    },
    "cohere with norms": {
        **_BASE,
        "model_type": "cohere",
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "use_qk_norm": True,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        **_RMS,
        "model_type": "gpt_oss",
        "head_dim": 24,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_scaling": _YARN,
    },
    "seed_oss": {**_RMS, "model_type": "seed_oss", "head_dim": 24, "attention_bias": True},
    "stablelm": {
        **_BASE,
        "model_type": "stablelm",
        "layer_norm_eps": 3e-3,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    "deepseek_v3": {
        **_RMS,
        **_ROUTED,
        **_LATENT,
        "model_type": "deepseek_v3",
        "q_lora_rank": 32,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek_v3, plain queries": {**_RMS, **_ROUTED, **_LATENT, "model_type": "deepseek_v3", "q_lora_rank": None},
    "glm4_moe": {
        **_RMS,
        **_ROUTED,
        "model_type": "glm4_moe",
        "head_dim": 24,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    },
    "dots1": {**_RMS, **_ROUTED, "model_type": "dots1", "num_key_value_heads": 4, "head_dim": 24},
    "cohere2": {
        **_BASE,
        "model_type": "cohere2",
        "num_hidden_layers": 5,
        "head_dim": 16,
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "ernie4_5": {**_RMS, "model_type": "ernie4_5", "head_dim": 24, "use_bias": False},
    "minimax": {
        **_RMS,
        "model_type": "minimax",
        "head_dim": 24,
        "rotary_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 0,
    },
    "olmo3": {
        **_RMS,
        "model_type": "olmo3",
        "num_hidden_layers": 5,
        "sliding_window": 8,
        "rope_scaling": _YARN,
    },
    "phi": {**_BASE, "model_type": "phi", "layer_norm_eps": 3e-3, "partial_rotary_factor": 0.5},
    "starcoder2": {**_BASE, "model_type": "starcoder2", "norm_epsilon": 3e-3},
}


def build_model(config: dict[str, Any], seed: int = 0) -> Any:
    """Make mlx-lm's model with random weights, which are not the defaults anywhere."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import _get_classes

    random = np.random.default_rng(seed)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if config["tie_word_embeddings"] and "lm_head" in model:
        model.sanitize({})  # how mlx-lm's gemma3_text learns that it is tied
    center = 0.0 if config["model_type"].startswith("gemma") else 1.0

    def fill(name: str, shape: tuple[int, ...]) -> mx.array:
        if "norm" in name and name.endswith("weight"):
            return mx.array((center + random.uniform(-0.2, 0.2, shape)).astype(np.float32))
        gain = 0.3 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
        return mx.array(random.standard_normal(shape, dtype=np.float32) * np.float32(gain))

    filled = [(name, fill(name, tuple(array.shape))) for name, array in tree_flatten(model.parameters())]
    model.update(tree_unflatten(filled))
    return model


def weights_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return a model's parameters by name."""
    from mlx.utils import tree_flatten

    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def _converted(tmp_path: Path, config: dict[str, Any], weights: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    from mlx_lm.utils import load_model

    file = export(tmp_path / "m.gguf", config, weights, **options)
    folder = GgufSource(tmp_path / "cache").fetch(str(file), lambda progress: None)
    loaded: tuple[Any, dict[str, Any]] = load_model(folder)
    return loaded


TOKEN_IDS = [5, 9, 40, 3, 77, 20, 31, 8, 64, 100, 11, 12]


def next_token_logits(model: Any) -> NDArray[np.float32]:
    """Run :data:`TOKEN_IDS` through a model. Shape (1, tokens, vocabulary)."""
    import mlx.core as mx

    return np.array(model(mx.array([TOKEN_IDS])))


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
        ("gpt_oss", {"{arch}.expert_used_count": 5}, CheckpointCorrupt, "uses 5 experts of 4"),
    ],
)
def test_what_the_model_would_ignore_is_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], fault: type[Exception], message: str
) -> None:
    config = MODELS[name]
    with pytest.raises(fault, match=message):
        _converted(tmp_path, config, weights_of(build_model(config)), keys=keys)


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
