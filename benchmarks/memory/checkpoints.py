"""The models that are measured: the embedded one, and random ones of a shape where its parts of memory are large.

    python -m benchmarks.memory.checkpoints MODEL FOLDER

writes one, and prints where.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import load_plugins

GROUP = 64
"""Weights that share a scale, where they are packed."""


class Recipe(NamedTuple):
    """How to make a checkpoint with random weights."""

    config: dict[str, Any]
    bits: int | None = None
    """Of the packed weights; None leaves them in bfloat16."""
    original: bool = False
    """Whether experts are stored one by one, as Hugging Face's Mixtral is, and not stacked."""


_COMMON = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False}
_LLAMA = {
    **_COMMON,
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 6,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}

RECIPES = {
    "llama": Recipe(_LLAMA),
    "llama, 4 bit": Recipe(_LLAMA, bits=4),
    "qwen3": Recipe(
        {
            **_COMMON,
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 6,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        }
    ),
    "gemma3": Recipe(
        {
            **_COMMON,
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "num_hidden_layers": 8,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 65536,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
        }
    ),
    "mixtral": Recipe(
        {
            **_COMMON,
            "model_type": "mixtral",
            "hidden_size": 1024,
            "num_hidden_layers": 4,
            "intermediate_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
        },
        original=True,
    ),
    "deepseek_v3": Recipe(
        {
            **_COMMON,
            "model_type": "deepseek_v3",
            "hidden_size": 1024,
            "num_hidden_layers": 4,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": 512,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "n_routed_experts": 16,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 512,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "vocab_size": 32000,
        }
    ),
    "mamba2": Recipe(
        {
            **_COMMON,
            "model_type": "mamba2",
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_heads": 32,
            "head_dim": 64,
            "state_size": 128,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_rank": 64,
            "time_step_limit": [0.0, 100.0],
            "layer_norm_epsilon": 1e-5,
            "vocab_size": 32000,
        }
    ),
    "lfm2": Recipe(
        {
            **_COMMON,
            "model_type": "lfm2",
            "hidden_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 1024,
            "block_ff_dim": 4096,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "conv", "full_attention"] * 2 + ["conv", "full_attention"],
            "vocab_size": 65536,
        }
    ),
}


def write(path: Path, recipe: Recipe) -> Path:
    """Write a checkpoint with random weights in MLX's own layout. Imports MLX."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten

    module = importlib.import_module(f"mlx_lm.models.{recipe.config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(recipe.config))
    model.set_dtype(mx.bfloat16)
    config = dict(recipe.config)
    if recipe.bits is not None:
        nn.quantize(model, group_size=GROUP, bits=recipe.bits)
        config["quantization"] = {"group_size": GROUP, "bits": recipe.bits, "mode": "affine"}
    weights = dict(tree_flatten(model.parameters()))
    if recipe.original:
        weights = dict(_one_by_one(weights))
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def _one_by_one(weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Undo what mlx-lm's ``sanitize()`` does to Mixtral's experts."""
    stored = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    for name, weight in weights.items():
        base, stacked, rest = name.partition(".switch_mlp.")
        if not stacked:
            yield name, weight
            continue
        for expert in range(weight.shape[0]):
            yield f"{base}.experts.{expert}.{stored[rest.removesuffix('.weight')]}.weight", weight[expert]


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


if __name__ == "__main__":
    print(MODELS[sys.argv[1]](Path(sys.argv[2])))
