"""Quantized checkpoints: which ones can be loaded, and the layers that hold them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import infer_quant_config

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint
from runtime.weights.awq import repacked

_BY_SHAPE = frozenset({"mxfp4", "mxfp8"})
"""Methods whose tensors are MLX's own, under the names that ``sanitize()`` gives them."""
_LIKE_AWQ = frozenset({"awq", "gptq"})
_BY_SANITIZE = {
    "fp8": frozenset(
        {
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v41",
            "glm_moe_dsa",
            "kimi_k25",
            "mimo_v2_flash",
            "minimax",
            "mistral4",
        }
    ),
    "compressed-tensors": frozenset({"deepseek_v3", "kimi_k25", "kimi_k3", "mistral4"}),
    "modelopt": frozenset({"muse_spark"}),
}
"""Methods that are unpacked or renamed by the ``sanitize()`` of these modules alone. That of ministral3 (mlx-lm 0.32.2)
takes the bytes of 8-bit floats for integers, so it is not one of them."""


def quantization_method(config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the ``quant_method`` of a configuration and its settings; None for plain weights and MLX's own packing."""
    if isinstance(config.get("quantization"), dict):
        return None, {}
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        settings = section.get("quantization_config")
        if isinstance(settings, dict):
            return str(settings.get("quant_method")), settings
    return None, {}


def packing_refusal(checkpoint: Checkpoint, module: str) -> str | None:
    """Say why the checkpoint's way of packing weights cannot be loaded into an mlx-lm module, or None if it can be."""
    config = checkpoint.config
    if config.get("quantize_activations"):
        return "it wants activations quantized (quantize_activations), which is not done here"
    method, settings = quantization_method(config)
    if method is None or method in _BY_SHAPE or module in _BY_SANITIZE.get(method, ()):
        return None
    if method not in _LIKE_AWQ:
        return (
            f"its weights are packed by {method}, which is not read for {module}; convert it with mlx_lm.convert first"
        )
    if settings.get("bits", 4) != 4:
        return f"its weights are packed by {method} with {settings['bits']} bits, and only 4 can be read"
    if any(name.endswith(".g_idx") for name in checkpoint.tensors):
        return (
            f"its weights are packed by {method} in groups out of order (g_idx); convert it with mlx_lm.convert first"
        )
    return None


def in_mlx_form(weights: dict[str, mx.array], checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return the weights packed as MLX packs them.

    Raises:
        CheckpointCorrupt: the parts of a packed tensor do not fit each other.
    """
    if quantization_method(checkpoint.config)[0] not in _LIKE_AWQ:
        return weights
    try:
        return repacked(weights)
    except (KeyError, ValueError) as error:
        raise CheckpointCorrupt(f"{checkpoint.path} holds packed weights whose parts do not fit: {error!r}") from error


def make_quantized_layers(model: nn.Module, weights: dict[str, mx.array], checkpoint: Checkpoint) -> None:
    """Swap in quantized layers wherever ``weights``, which have the model's names, are packed.

    Raises:
        CheckpointCorrupt: scales do not fit their weights.
    """
    if not any(name.endswith(".scales") for name in weights):
        return

    def how(name: str, module: nn.Module) -> dict[str, Any] | bool:
        if f"{name}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        try:
            settings: dict[str, Any] = infer_quant_config(name, module, weights)
        except (ArithmeticError, LookupError, ValueError) as error:
            # mlx-lm computes the settings from the shapes, whatever those are.
            raise CheckpointCorrupt(
                f"{checkpoint.path} holds scales for {name} that do not fit its weights: {error}"
            ) from error
        if f"{name}.global_scale" in weights and "global_scale" in inspect.signature(module.to_quantized).parameters:
            settings["global_scale"] = True
        return settings

    try:
        nn.quantize(model, class_predicate=how)
    except ValueError as error:
        raise CheckpointCorrupt(
            f"{checkpoint.path} holds weights packed in a way that MLX does not know: {error}"
        ) from error
