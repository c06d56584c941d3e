"""Tiny models of every architecture that is converted from GGUF; their settings are unlike any default."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.testing.gguf_files import TOKENS

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 1024,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
_RMS = {**_BASE, "rms_norm_eps": 3e-3}
_LINEAR = {"type": "linear", "rope_type": "linear", "factor": 4.0}
_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 24.0,
    "beta_slow": 2.0,
}
_GEMMA = {**_RMS, "head_dim": 24, "tie_word_embeddings": True}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "rms_norm_eps": 1e-6,  # two norms of mlx-lm's model have no other
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_RMS, "model_type": "llama", "head_dim": 24, "rope_scaling": _LINEAR},
    "llama with biases": {**_RMS, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, yarn, tied": {**_RMS, "model_type": "llama", "rope_scaling": _YARN, "tie_word_embeddings": True},
    "ministral3": {
        **_RMS,
        "model_type": "ministral3",
        "head_dim": 24,
        "rope_parameters": {
            **_YARN,
            "original_max_position_embeddings": 8,
            "rope_theta": 5000.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3,
        },
    },
    "mixtral": {**_RMS, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 3},
    "qwen2": {**_RMS, "model_type": "qwen2", "rope_scaling": _YARN},
    "qwen2_moe": {
        **_RMS,
        **_EXPERTS,
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3": {**_RMS, "model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "qwen3_moe": {
        **_RMS,
        **_EXPERTS,
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # GGUF does not hold Gemma's first two rope bases.
    "gemma": {**_GEMMA, "model_type": "gemma", "rope_theta": 10000.0},
    "gemma2": {
        **_GEMMA,
        "model_type": "gemma2",
        "rope_theta": 10000.0,
        "attn_logit_softcapping": 7.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
    },
    "gemma3_text": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_local_base_freq": 700.0,
        "rope_scaling": _LINEAR,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
    },
    "phi3": {
        **_RMS,
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
            "short_factor": [1.0, 1.0, 1.0, 1.25, 1.5, 2.0],
        },
    },
    "phi3, short, tied": {**_RMS, "model_type": "phi3", "tie_word_embeddings": True},
    "smollm3": {**_RMS, "model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": True},
    "granite": {
        **_RMS,
        "model_type": "granite",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 1.5,
    },
    "olmo2": {**_RMS, "model_type": "olmo2"},
    "olmoe": {**_RMS, "model_type": "olmoe", "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
    "glm4": {
        **_RMS,
        "model_type": "glm4",
        "head_dim": 24,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "cohere": {
        **_BASE,
        "model_type": "cohere",
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "tie_word_embeddings": True,
    },
    "cohere with norms": {
        **_BASE,
        "model_type": "cohere",
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "use_qk_norm": True,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        **_RMS,
        "model_type": "gpt_oss",
        "head_dim": 24,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_scaling": _YARN,
    },
    "seed_oss": {**_RMS, "model_type": "seed_oss", "head_dim": 24, "attention_bias": True},
    "stablelm": {
        **_BASE,
        "model_type": "stablelm",
        "layer_norm_eps": 3e-3,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    "deepseek_v3": {
        **_RMS,
        **_ROUTED,
        **_LATENT,
        "model_type": "deepseek_v3",
        "q_lora_rank": 32,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek_v3, plain queries": {**_RMS, **_ROUTED, **_LATENT, "model_type": "deepseek_v3", "q_lora_rank": None},
    "glm4_moe": {
        **_RMS,
        **_ROUTED,
        "model_type": "glm4_moe",
        "head_dim": 24,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    },
    "dots1": {**_RMS, **_ROUTED, "model_type": "dots1", "num_key_value_heads": 4, "head_dim": 24},
    "cohere2": {
        **_BASE,
        "model_type": "cohere2",
        "num_hidden_layers": 5,
        "head_dim": 16,
        "layer_norm_eps": 3e-3,
        "logit_scale": 0.3,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "ernie4_5": {**_RMS, "model_type": "ernie4_5", "head_dim": 24, "use_bias": False},
    "lfm2": {
        **_BASE,
        "model_type": "lfm2",
        "num_hidden_layers": 4,
        "norm_eps": 3e-3,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "tie_word_embeddings": True,
    },
    "minimax": {
        **_RMS,
        "model_type": "minimax",
        "head_dim": 24,
        "rotary_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 0,
    },
    "olmo3": {
        **_RMS,
        "model_type": "olmo3",
        "num_hidden_layers": 5,
        "sliding_window": 8,
        "rope_scaling": _YARN,
    },
    "phi": {**_BASE, "model_type": "phi", "layer_norm_eps": 3e-3, "partial_rotary_factor": 0.5},
    "starcoder2": {**_BASE, "model_type": "starcoder2", "norm_epsilon": 3e-3},
}


def build_model(config: dict[str, Any], seed: int = 0) -> Any:
    """Make mlx-lm's model with random weights, which are not the defaults anywhere."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import _get_classes

    random = np.random.default_rng(seed)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if config["tie_word_embeddings"] and "lm_head" in model:
        model.sanitize({})  # how mlx-lm's gemma3_text learns that it is tied
    center = 0.0 if config["model_type"].startswith("gemma") else 1.0

    def fill(name: str, shape: tuple[int, ...]) -> mx.array:
        if "norm" in name and name.endswith("weight"):
            return mx.array((center + random.uniform(-0.2, 0.2, shape)).astype(np.float32))
        gain = 0.3 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
        return mx.array(random.standard_normal(shape, dtype=np.float32) * np.float32(gain))

    filled = [(name, fill(name, tuple(array.shape))) for name, array in tree_flatten(model.parameters())]
    model.update(tree_unflatten(filled))
    return model


def weights_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return a model's parameters by name."""
    from mlx.utils import tree_flatten

    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


TOKEN_IDS = [5, 9, 40, 3, 77, 20, 31, 8, 64, 100, 11, 12]


def next_token_logits(model: Any) -> NDArray[np.float32]:
    """Run :data:`TOKEN_IDS` through a model. Shape (1, tokens, vocabulary)."""
    import mlx.core as mx

    return np.array(model(mx.array([TOKEN_IDS])))
