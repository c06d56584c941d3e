"""mlx-lm's model for a configuration."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.spi import TensorInfo
from runtime.weights.reading import stand_ins

_TAGGED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def module_name(config: Mapping[str, Any]) -> str:
    """Return the name of the mlx-lm module for a configuration: several ``model_type``s share one."""
    from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

    model_type = str(config["model_type"])
    architectures = config.get("architectures") or ()
    for architecture in (architectures,) if isinstance(architectures, str) else architectures:
        if (model_type, architecture) in MODEL_ARCHITECTURE_REMAPPING:
            return str(MODEL_ARCHITECTURE_REMAPPING[model_type, architecture])
    return str(MODEL_REMAPPING.get(model_type, model_type))


def build(config: dict[str, Any], tensors: Mapping[str, TensorInfo] | None = None) -> nn.Module:
    """Make mlx-lm's model for a configuration, lazily: no weight is allocated.

    Args:
        config: ``config.json``.
        tensors: the checkpoint's, where there is one. Some architectures find out from them whether their head is the
            embedding, and take away their own.

    Raises:
        ModelUnsupported: mlx-lm makes no model of the configuration.
        CheckpointCorrupt: the architecture does not know what to do with the tensors.
    """
    model = _make(config)
    if tensors is not None:
        _sanitize(model, stand_ins(tensors, None))
    return model


def sanitized(config: dict[str, Any], weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return the weights under the names, and in the form, that mlx-lm's model has. ``weights`` is used up.

    A model of its own is asked, which is then thrown away: ``sanitize()`` may change the model, and look at any part.

    Raises:
        CheckpointCorrupt: the architecture cannot do it with these.
    """
    return _sanitize(_make(config), weights)


def _make(config: dict[str, Any]) -> nn.Module:
    module = importlib.import_module(f"mlx_lm.models.{module_name(config)}")
    try:
        return module.Model(module.ModelArgs.from_dict(_without_tags(config)))
    except Exception as error:
        # mlx-lm computes with what the configuration says, and raises whatever comes of that.
        raise ModelUnsupported(
            f"mlx-lm cannot build a {config['model_type']} from this config.json: {error!r}"
        ) from error


def _sanitize(model: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    if not hasattr(model, "sanitize"):
        return weights
    try:
        renamed: dict[str, mx.array] = model.sanitize(weights)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Written for complete checkpoints of the right shapes: what it raises for others is anything.
        raise CheckpointCorrupt(
            f"mlx-lm's {type(model).__module__.rpartition('.')[2]} does not understand the names or shapes of the "
            f"tensors; compare the checkpoint with its original: {error!r}"
        ) from error
    return renamed


def _without_tags(value: Any) -> Any:
    """Undo how transformers writes numbers that JSON has not: ``{"__float__": "Infinity"}``."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and value["__float__"] in _TAGGED:
            return _TAGGED[value["__float__"]]
        return {key: _without_tags(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_tags(entry) for entry in value]
    return value
