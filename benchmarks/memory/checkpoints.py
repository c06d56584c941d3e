"""The models that are measured: the embedded one, and random ones of a shape where its parts of memory are large."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import load_plugins

GROUP = 64
"""Weights that share a scale, where they are packed."""


class Recipe(NamedTuple):
    """How to make a checkpoint with random weights."""

    config: dict[str, Any]
    dtype: str = "bfloat16"
    bits: int | None = None
    """Of the packed weights; None leaves them as they are."""


_LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 6,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}

RECIPES = {
    "llama": Recipe(_LLAMA),
    "llama-4bit": Recipe(_LLAMA, bits=4),
    "qwen3": Recipe(
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 8,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "vocab_size": 151936,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    ),
}


def write(path: Path, recipe: Recipe) -> Path:
    """Write a checkpoint in MLX's own layout. Imports MLX."""
    import mlx.core as mx
    from mlx import nn

    module = importlib.import_module(f"mlx_lm.models.{recipe.config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(recipe.config))
    model.set_dtype(getattr(mx, recipe.dtype))
    config = dict(recipe.config)
    if recipe.bits is not None:
        nn.quantize(model, group_size=GROUP, bits=recipe.bits)
        config["quantization"] = {"group_size": GROUP, "bits": recipe.bits, "mode": "affine"}
    path.mkdir(parents=True)
    model.save_weights(str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def embedded(path: Path) -> Path:
    """Return the folder of the embedded model, converted below ``path``."""
    context = PluginContext(node="benchmark", data_dir=path)
    source = load_plugins().make("source", "gguf", {}, context)
    folder: Path = source.fetch("smollm2:135m", lambda progress: None)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "smollm2:135m": embedded,
    **{name: lambda path, recipe=recipe: write(path, recipe) for name, recipe in RECIPES.items()},  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
}
"""What writes each model below a folder, and returns the checkpoint's."""
