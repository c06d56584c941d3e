"""What the names of tensors tell."""

from __future__ import annotations

import pytest

from runtime.weights.layers import expert_of, is_speculative, layer_of, put_back, renumbered, set_apart


@pytest.mark.parametrize(
    ("name", "layer", "expert"),
    [
        ("model.layers.19.block_sparse_moe.experts.5.w1.weight", 19, 5),
        ("language_model.model.layers.3.mlp.experts.12.up_proj.weight", 3, 12),
        ("transformer.h.7.moe.mlp.2.fc1.weight", 7, 2),
        ("transformer.blocks.4.ffn.experts.mlp.w1", 4, None),
        ("layers.1.ffn.experts.0.w1.scale", 1, 0),
        ("model.layers.layers.2.mixer.in_proj.weight", 2, None),
        ("backbone.layers.11.mixer.experts.3.up_proj.weight", 11, 3),
        ("h.0.attn.c_attn.weight", 0, None),
        ("model.layers.5.self_attn.1.kv_b_proj.weight", 5, None),
        ("model.layers.5.mlp.shared_experts.up_proj.weight", 5, None),
        ("model.embed_tokens.weight", None, None),
        ("lm_head.weight", None, None),
        ("model.visual.blocks.3.attn.qkv.weight", None, None),
        ("vision.blocks.3.attn.qkv.weight", None, None),
        ("model.vision_tower.encoder.layers.3.mlp.fc1.weight", None, None),
    ],
)
def test_a_name_tells_the_layer_and_the_expert(name: str, layer: int | None, expert: int | None) -> None:
    assert (layer_of(name), expert_of(name)) == (layer, expert)


def test_a_number_of_too_many_digits_is_none() -> None:
    number = "9" * 5000
    assert layer_of(f"model.layers.{number}.mlp.up_proj.weight") is None
    assert expert_of(f"model.layers.1.mlp.experts.{number}.up_proj.weight") is None


@pytest.mark.parametrize(
    ("name", "speculative"),
    [
        ("model.layers.61.eh_proj.weight", True),
        ("model.layers.60.mlp.gate.weight", False),
        ("mtp.layers.0.mlp.gate.weight", True),
        ("model.mtp_layers.0.input_proj.weight", True),
        ("model.mtp_block.0.mlp.gate.weight", True),
        ("model.visual.blocks.63.norm.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_what_predicts_further_tokens_is_told_from_the_model(name: str, speculative: bool) -> None:
    assert is_speculative(name, 61) == speculative


def test_names_can_be_given_other_numbers() -> None:
    name = "model.layers.19.block_sparse_moe.experts.5.w1.weight"
    assert renumbered(name, layer=0, expert=11) == "model.layers.0.block_sparse_moe.experts.11.w1.weight"
    assert renumbered(name) == name
    assert renumbered("model.norm.weight", layer=3, expert=4) == "model.norm.weight"


@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.5.w1.weight", "transformer.h.7.moe.mlp.2.fc1.weight"])
def test_an_expert_s_name_can_be_set_apart_and_put_back(name: str) -> None:
    assert expert_of(set_apart(name)) is None
    assert put_back(set_apart(name)) == name
    assert put_back(name) is None
