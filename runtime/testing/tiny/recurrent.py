"""Tiny configurations of models that keep a state in place of, or beside, keys and values."""

from __future__ import annotations

from typing import Any

from runtime.testing.tiny.common import SIZE, sized

_DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_QWEN35 = sized(
    **_DELTA_NET,
    model_type="qwen3_5_text",
    num_hidden_layers=5,
    full_attention_interval=2,
    rope_parameters={
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
)
_LFM2 = sized(
    norm_eps=1e-5,
    conv_bias=False,
    conv_L_cache=3,
    block_dim=64,
    block_ff_dim=128,
    block_multiple_of=32,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=False,
    layer_types=["conv", "full_attention", "conv", "full_attention"],
)
_MAMBA = {
    "vocab_size": SIZE["vocab_size"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "state_size": 16,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 32,
}


def _rotated(path: str) -> dict[str, Any]:
    """Return the record of a matrix that is packed with a rotation folded in."""
    return {"path": path, "embedding": path.endswith("embed_tokens"), "dtype": "float16", "block": 512}


RECURRENT: dict[str, dict[str, Any]] = {
    "baichuan_m1": sized(
        sliding_window=8,
        sliding_window_layers=[1, 3],
        conv_window=2,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
    ),
    "falcon_h1": sized(
        mamba_d_conv=4,
        mamba_d_head=32,
        mamba_d_ssm=128,
        mamba_d_state=32,
        mamba_n_groups=1,
        mamba_n_heads=4,
    ),
    "gear": sized(
        layer_types=["conv_mixer", "sliding_attention", "conv_mixer", "full_attention"],
        sliding_window=8,
        query_pre_attn_scalar=16,
    ),
    "lfm2": _LFM2,
    "lfm2-vl": {"text_config": {**_LFM2, "model_type": "lfm2"}},
    "mamba": _MAMBA,
    "mamba2": {
        **_MAMBA,
        "num_heads": 4,
        "head_dim": 32,
        "layer_norm_epsilon": 1e-5,
        "n_groups": 1,
        "time_step_limit": [0.0, 100.0],
        "tie_word_embeddings": False,
    },
    "olmo_hybrid": sized(
        **_DELTA_NET,
        linear_allow_neg_eigval=True,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "plamo2": sized(
        hidden_size_per_head=16,
        attention_window_size=512,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_num_heads=4,
        mamba_step=2,
    ),
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [_rotated("model.embed_tokens"), *(_rotated(f"model.layers.{i}.mlp.up_proj") for i in range(5))],
        "text_config": {**_QWEN35, "hidden_size": 512},
    },
    "qwen3_5": {"text_config": _QWEN35},
    "recurrent_gemma": sized(
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=8,
        num_hidden_layers=6,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "rwkv7": {
        "vocab_size": SIZE["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "norm_eps": 1e-5,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "a_low_rank_dim": 32,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 32,
        "decay_low_rank_dim": 32,
    },
}
