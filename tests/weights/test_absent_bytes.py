"""Checkpoints of which only a slice's bytes are on the machine."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import msgspec
import pytest

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, read_checkpoint
from runtime.testing.tiny import tiny_config
from runtime.weights import load
from runtime.weights.layers import layer_of
from tests.weights.checkpoints import PLAIN, parameters, random_model, slice_model, write
from tests.weights.raw_layouts import Weights, raw


def partial(folder: Path, module: str, *present: str, layer: int) -> tuple[Checkpoint, Weights]:
    """Write a raw checkpoint; return it as if only one layer and the tensors ``present`` were here, and the whole."""
    config = tiny_config(module)
    model = random_model(config)
    checkpoint = read_checkpoint(write(folder, config, raw(module, parameters(model), config)))
    absent = {name for name in checkpoint.tensors if layer_of(name) != layer and name not in present}
    return msgspec.structs.replace(checkpoint, absent=frozenset(absent)), parameters(model)


def load_layer(checkpoint: Checkpoint, layer: int, *owned: str) -> Weights:
    """Load one layer, and of what stands outside the layers only the modules named."""
    span = LayerSpan(layer, layer + 1, checkpoint.num_layers)
    model = slice_model(checkpoint, layer, layer + 1, span.total)
    for name, module in model.named_modules():
        if layer_of(f"{name}.") is None and name not in owned:
            for part in [part for part, value in module.items() if isinstance(value, mx.array)]:
                module.pop(part)
    load(model, checkpoint, span, PLAIN, lambda done, total: None)
    return parameters(model)


@pytest.mark.parametrize("module", ["mixtral", "qwen3_next", "bailing_moe", "llama", "minicpm"])
def test_a_layer_loads_though_nothing_else_is_here(tmp_path: Path, module: str) -> None:
    checkpoint, whole = partial(tmp_path / "model", module, layer=2)
    loaded = load_layer(checkpoint, 2)
    assert {layer_of(name) for name in loaded} == {2}
    assert all(mx.allclose(array, whole[name], atol=1e-6) for name, array in loaded.items())


@pytest.mark.parametrize(
    ("module", "owned", "named"),
    [
        ("llama", "lm_head", "lm_head.weight"),  # taken as it is
        ("minicpm", "lm_head", "lm_head.weight"),  # made of another one
        ("baichuan_m1", "lm_head", "lm_head.weight"),  # computed from
        ("mixtral", "model.embed_tokens", "model.embed_tokens.weight"),
    ],
)
def test_a_slice_that_owns_what_is_not_here_is_refused(tmp_path: Path, module: str, owned: str, named: str) -> None:
    checkpoint, _ = partial(tmp_path / "model", module, layer=1)
    with pytest.raises(CheckpointCorrupt, match=named.replace(".", r"\.") + " of .* not here"):
        load_layer(checkpoint, 1, owned)


def test_a_tensor_of_the_slice_that_is_not_here_is_named(tmp_path: Path) -> None:
    checkpoint, _ = partial(tmp_path / "model", "llama", layer=1)
    gone = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointCorrupt, match=gone.replace(".", r"\.")):
        load_layer(msgspec.structs.replace(checkpoint, absent=checkpoint.absent | {gone}), 1)
