"""Sizes that the tiny configurations share."""

from __future__ import annotations

from typing import Any

SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""Under the names that most architectures use. Every matrix can be quantized in groups of 32."""

SLIDING: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "sliding_window": 8,
}
"""A window shorter than a prompt, in every other layer."""

MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
"""Multi-head latent attention."""

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
"""Under DeepSeek's names; the first layer is dense."""


def sized(**changes: Any) -> dict[str, Any]:
    """Return :data:`SIZE` with changes and additions."""
    return {**SIZE, **changes}
