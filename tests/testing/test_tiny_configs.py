"""There is a tiny configuration for every text model that mlx-lm has, and mlx-lm builds each."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

import mlx_lm.models
import pytest
from mlx_lm.utils import _get_classes

from runtime.inference.installed import NO_MODELS
from runtime.testing.tiny import TINY_MODULES, tiny_config

NOT_IMPORTABLE = {"olmo"}
"""It ends the process unless the package ai2-olmo is there."""


def test_every_model_module_has_one() -> None:
    installed = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    assert set(TINY_MODULES) == installed - NO_MODELS


@pytest.mark.parametrize("module", sorted(set(TINY_MODULES) - NOT_IMPORTABLE))
def test_mlx_lm_builds_it(module: str) -> None:
    config = json.loads(json.dumps(tiny_config(module)))
    model_class, arguments_class = _get_classes(config)
    assert model_class.__module__.endswith((f".{module}", ".glm4_moe"))  # solar_open is glm4_moe
    model = model_class(arguments_class.from_dict(config))
    nested: dict[str, Any] = config.get("text_config", config)
    assert nested.get("num_hidden_layers", len(model.layers)) == len(model.layers) >= 3


def test_a_caller_may_change_what_it_gets() -> None:
    tiny_config("llama")["layer_types"].clear()
    assert tiny_config("llama")["layer_types"]
