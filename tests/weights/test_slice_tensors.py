"""The tensors that a node fetches for a slice are enough to load it, whatever the architecture."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runtime.inference.loading import load_shard
from runtime.spi import LayerSpan, ModelFamily, read_checkpoint
from runtime.testing.tiny import TINY_MODULES, tiny_config
from runtime_crossing.family import CrossingFamily
from runtime_dense.family import DenseFamily
from runtime_moe.family import MoeFamily
from tests.weights.checkpoints import PLAIN, parameters, random_model, write
from tests.weights.raw_layouts import STEPS, raw

FAMILIES: dict[str, ModelFamily] = {"dense": DenseFamily(), "moe": MoeFamily(), "crossing": CrossingFamily()}
NOT_LOADED = {"olmo", "iquestloopcoder"}
"""Needs a package of its own; is refused by name."""


@pytest.mark.parametrize("module", sorted(set(TINY_MODULES) - NOT_LOADED))
def test_a_slice_loads_from_nothing_but_the_tensors_that_are_fetched_for_it(tmp_path: Path, module: str) -> None:
    config = tiny_config(module)
    model = random_model(config)
    weights = raw(module, parameters(model), config) if module in STEPS else parameters(model)
    checkpoint = read_checkpoint(write(tmp_path / "model", config, weights))
    layers = len(model.layers)
    for span in (LayerSpan(1, layers - 1, layers), LayerSpan(layers - 1, layers, layers)):
        family = next(each for each in FAMILIES.values() if each.refusal(checkpoint) is None)
        absent = frozenset(checkpoint.tensors) - family.tensors(checkpoint, span)
        assert absent
        # A tensor that is needed and absent is refused by its name.
        load_shard(FAMILIES, msgspec.structs.replace(checkpoint, absent=absent), span, PLAIN, lambda done, total: None)
