"""What holds for every architecture holds for packed weights, other types, packed caches and tied heads too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from runtime.errors import ModelError, ModelUnsupported
from runtime.inference.anatomy import dissect
from runtime.inference.caches import batched, quantized
from runtime.inference.check import RandomModel, check
from runtime.inference.ghosts import State
from runtime.inference.loading import choose_family
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerCalls, LayerSpan, ModelFamily
from runtime.testing.tiny import tiny_config
from runtime_crossing.family import CrossingFamily
from runtime_dense.family import DenseFamily
from runtime_moe.family import MoeFamily

FAMILIES: dict[str, ModelFamily] = {"dense": DenseFamily(), "moe": MoeFamily(), "crossing": CrossingFamily()}
PACKED: dict[str, dict[str, Any]] = {
    "4 bits": {"group_size": 32, "bits": 4},
    "8 bits": {"group_size": 32, "bits": 8},
    "no group size": {"bits": 4},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mixed": {
        "group_size": 32,
        "bits": 4,
        "model.layers.1.self_attn.q_proj": {"group_size": 32, "bits": 8},
        "model.layers.2.mlp.down_proj": False,
    },
}


def checkpoint(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(path=Path(config["model_type"]), config=config, tensors={})


def assert_exact(config: dict[str, Any], dtype: str = "float32") -> None:
    subject = RandomModel(FAMILIES, checkpoint(config), dtype)
    for result in check(subject, [(subject.layers // 2,), tuple(range(1, subject.layers))]):
        assert result.is_exact, result


@pytest.mark.parametrize(
    ("module", "packing"),
    [
        *(("llama", packing) for packing in PACKED),
        *(("mixtral", packing) for packing in PACKED),
        ("qwen3_5", "4 bits"),
        ("deepseek_v3", "4 bits"),
        ("gemma4_text", "4 bits"),
        ("deepseek_v41", "4 bits"),
    ],
)
def test_packed_weights_are_cut_exactly(module: str, packing: str) -> None:
    assert_exact({**tiny_config(module), "quantization": PACKED[packing]})


@pytest.mark.parametrize(
    ("module", "dtype"),
    [("llama", "bfloat16"), ("llama", "float16"), ("gemma3n", "bfloat16"), ("rwkv7", "float16"), ("talkie", "float16")],
)
def test_sixteen_bit_types_are_cut_exactly(module: str, dtype: str) -> None:
    assert_exact(tiny_config(module), dtype)


@pytest.mark.parametrize(
    ("module", "tied"),
    [("llama", True), ("plamo2", True), ("qwen3_5", True), ("mixtral", True), ("rwkv7", True), ("gemma4_text", False)],
)
def test_a_head_that_is_the_embedding_or_not_is_cut_exactly(module: str, tied: bool) -> None:
    config = tiny_config(module)
    config.get("text_config", config)["tie_word_embeddings"] = tied
    assert_exact(config)


@pytest.mark.parametrize("module", ["llama", "falcon_h1", "mixtral", "qwen3_5"])
def test_packed_caches_are_cut_exactly(module: str) -> None:
    config = tiny_config(module)
    config.get("text_config", config).update(head_dim=32, hidden_size=128)
    subject = RandomModel(FAMILIES, checkpoint(config))

    def packed(cache: list[Any]) -> list[Any]:
        return [quantized(entry, bits=8, group_size=32) for entry in cache]

    whole, total = subject.whole(), subject.layers
    stages = [subject.stage(LayerSpan(start, stop, total)) for start, stop in pairwise((0, 1, 2, total))]
    cache, caches = packed(make_prompt_cache(whole)), [packed(stage.new_cache()) for stage in stages]
    assert any("Quantized" in type(part).__name__ for entry in cache for part in getattr(entry, "caches", [entry]))
    for tokens in (mx.array([list(range(5, 25))]), mx.array([[7]]), mx.array([[9]])):
        given: mx.array | State = tokens
        for stage, own in zip(stages, caches, strict=True):
            given = stage.forward(given, own)
            mx.eval(given, stage.state(own))
        assert isinstance(given, mx.array)
        assert mx.array_equal(given, whole(tokens, cache=cache)), tokens.shape


@pytest.mark.parametrize("module", ["llama", "kimi_k3", "gemma4", "longcat_flash_ngram"])
def test_looking_into_a_model_leaves_it_as_it_was(module: str) -> None:
    config = tiny_config(module)
    family = choose_family(FAMILIES, checkpoint(config))
    model = family.build(config)

    def contents() -> list[tuple[str, int, dict[str, int]]]:
        return [(name, id(part), {key: id(value) for key, value in vars(part).items()}) for name, part in parts]

    parts = model.named_modules()
    before, names = contents(), [name for name, _ in tree_flatten(model.parameters())]
    dissect(model, len(model.layers), family.layer_calls(config))
    assert [(name, id(part)) for name, part in model.named_modules()] == [(name, part) for name, part, _ in before]
    assert contents() == before
    assert [name for name, _ in tree_flatten(model.parameters())] == names


def test_the_parts_around_the_layers_are_told_apart_by_when_they_run() -> None:
    config = tiny_config("gemma3n")
    model = CrossingFamily().build(config)
    anatomy = dissect(model, 6, CrossingFamily().layer_calls(config))
    inner = model.model.language_model
    assert {id(place.module) for place in anatomy.before} == {
        id(part)
        for part in (
            inner.embed_tokens_per_layer,
            inner.per_layer_model_projection,
            inner.per_layer_projection_norm,
            *inner.altup_projections,
        )
    }
    assert [place.module for place in anatomy.both] == [inner.embed_tokens]
    assert {id(place.module) for place in anatomy.after} == {
        id(part) for part in (inner.norm, *inner.altup_unembed_projections)
    }


@pytest.mark.parametrize(
    ("module", "change", "reason"),
    [
        ("nanbeige", {"num_loops": 2}, "runs its layers more than once"),
        ("iquestloopcoder", {}, "goes through its layers twice"),
        ("olmo", {}, "ai2-olmo"),
        ("llama", {"model_type": "llamma"}, r"mlx-lm .* has no such model_type; the nearest it has: llama"),
        ("llama", {"model_type": "mistal"}, r"the nearest it has: mistral"),
        ("llama", {"model_type": "../../etc"}, r"has no such model_type"),
        ("mixtral", {"quantization_config": {"quant_method": "exl2"}}, "moe: its weights are packed by exl2"),
    ],
)
def test_what_cannot_be_cut_or_is_unknown_is_refused_with_the_reason(
    module: str, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelUnsupported, match=reason):
        assert_exact({**tiny_config(module), **change})


def test_a_model_that_calls_its_layers_in_another_way_is_refused() -> None:
    model = DenseFamily().build(tiny_config("iquestloopcoder"))
    with pytest.raises(ModelUnsupported, match="part by part"):
        dissect(model, 4, LayerCalls())


class Endless(LayerCalls):
    """Never has all that must travel."""

    def leave(self, *call: Any) -> bool:
        super().leave(*call)
        return False


def test_a_family_that_never_ends_a_pass_is_told_so() -> None:
    shard = Shard(DenseFamily().build(tiny_config("llama")), LayerSpan(0, 2, 4), Endless())
    with pytest.raises(ModelUnsupported, match="Endless never says what must travel"):
        shard.forward(mx.array([[1, 2]]), shard.new_cache())


def test_a_batch_is_refused_where_mlx_lm_has_none() -> None:
    config = tiny_config("llama4")
    shard = Shard(MoeFamily().build(config), LayerSpan(0, 2, 5))
    with pytest.raises(ModelUnsupported, match="one sequence at a time"):
        shard.new_cache([0, 3])
    with pytest.raises(ModelUnsupported, match="ChunkedKVCache"):
        batched(shard.new_cache()[0], [0, 3])


def test_a_model_that_computes_no_number_at_all_is_not_exact() -> None:
    config = tiny_config("llama")
    subject = RandomModel(FAMILIES, checkpoint(config))
    whole = subject.whole()
    whole.load_weights([("model.norm.weight", whole.model.norm.weight * mx.nan)], strict=False)
    with pytest.raises(ModelError, match=r"no finite logit in step 1,"):
        list(check(subject, [(1,)]))
