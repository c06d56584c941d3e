"""Which tensors a slice needs, told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.spi import Checkpoint, LayerSpan, TensorInfo
from runtime.spi.slices import slice_tensors

LAYERS = 4


def checkpoint(*names: str, **config: Any) -> Checkpoint:
    tensors = {name: TensorInfo(name, "F32", (1,), Path("w"), 0, 4) for name in names}
    return Checkpoint(path=Path(), config={"model_type": "x", **config}, tensors=tensors)


def slices(*names: str, **config: Any) -> list[set[str]]:
    """What each of three stages needs: layers 0-1, 2, 3."""
    found = checkpoint(*names, **config)
    spans = LayerSpan(0, 2, LAYERS), LayerSpan(2, 3, LAYERS), LayerSpan(3, 4, LAYERS)
    return [set(slice_tensors(found, span)) for span in spans]


@pytest.mark.parametrize("prefix", ["model.layers", "transformer.h", "blocks", "language_model.model.layers"])
def test_layers_go_to_their_stage(prefix: str) -> None:
    names = [f"{prefix}.{layer}.mlp.weight" for layer in range(LAYERS)]
    assert slices(*names) == [{names[0], names[1]}, {names[2]}, {names[3]}]


def test_layers_beyond_the_models_own_are_nobodys() -> None:
    assert slices("model.layers.4.mlp.weight") == [set(), set(), set()]


def test_the_embedding_is_the_first_stages_and_the_head_the_last_ones() -> None:
    names = "model.embed_tokens.weight", "lm_head.weight"
    assert slices(*names, tie_word_embeddings=False) == [{names[0]}, set(), {names[1]}]


def test_a_tied_embedding_is_at_both_ends() -> None:
    name = "model.embed_tokens.weight"
    assert slices(name, tie_word_embeddings=True) == [{name}, set(), {name}]
    assert slices(name) == [{name}, set(), {name}], "nothing is said, and there is no other head"
    assert slices(name, tie_word_embeddings=False) == [{name}, set(), {name}], "it is said that there is, and it is not"


def test_where_nothing_is_said_of_the_head_both_may_be_it() -> None:
    names = "model.embed_tokens.weight", "lm_head.weight"
    assert slices(*names) == [{names[0]}, set(), set(names)]


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (("wte.weight", "wpe.weight"), [{"wte.weight", "wpe.weight"}, set(), {"wte.weight"}]),
        (("gpt_neox.embed_in.weight", "embed_out.weight"), [{"gpt_neox.embed_in.weight"}, set(), {"embed_out.weight"}]),
        (("model.embed.weight", "lm_head"), [{"model.embed.weight"}, set(), {"lm_head"}]),
        (
            ("embed_tokens_per_layer.weight", "lm_head.weight"),
            [{"embed_tokens_per_layer.weight"}, set(), {"lm_head.weight"}],
        ),
        (
            ("altup_projections.0.weight", "altup_unembed_projections.0.weight"),
            [{"altup_projections.0.weight"}, set(), {"altup_unembed_projections.0.weight"}],
        ),
    ],
)
def test_what_only_one_end_of_the_model_computes_with_is_at_that_end(
    names: tuple[str, ...], stages: list[set[str]]
) -> None:
    assert slices(*names, tie_word_embeddings=any("wte" in name for name in names)) == stages


def test_what_is_not_understood_is_everybodys_and_pictures_are_nobodys() -> None:
    names = "model.norm.weight", "shared.weight", "vision_tower.layers.0.weight", "visual.blocks.1.weight"
    assert slices(*names, "mtp.layers.0.mlp.weight") == [{"model.norm.weight", "shared.weight"}] * 3


def test_a_number_of_thousands_of_digits_is_no_layers() -> None:
    name = f"model.layers.{'9' * 5000}.mlp.weight"
    assert slices(name) == [{name}, {name}, {name}]
