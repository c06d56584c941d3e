"""Phi-2; and Phi-3, Phi-3.5 and Phi-4, which keep q, k and v in one matrix, and gate and up in another."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    Blueprint,
    base_config,
    endpoints,
    layer_norm,
    linear,
    pre_norms,
    read_sizes,
    rms_eps,
    rotated_part,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def phi3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Phi-3. mlx-lm's has no sliding window, and llama.cpp's runs without it."""
    sizes = read_sizes(file, even_heads=True)
    rotated, share = rotated_part(file, sizes)
    file.ignore("attention.sliding_window", "attention.sliding_window_pattern")
    context = file.positive("context_length")
    config = base_config(file, sizes, "phi3", "Phi3ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "partial_rotary_factor": share,
        "rope_scaling": rope_scaling(file, factors, rotated, known=("longrope",)),
        "original_max_position_embeddings": file.positive("rope.scaling.original_context_length", context),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *linear("attn_qkv", "self_attn.qkv_proj", sizes.wide + 2 * sizes.narrow, sizes.hidden),
            *linear("attn_output", "self_attn.o_proj", sizes.hidden, sizes.wide),
            *linear("ffn_up", "mlp.gate_up_proj", 2 * sizes.inner, sizes.hidden),
            *linear("ffn_down", "mlp.down_proj", sizes.hidden, sizes.inner),
        ),
    )


def phi2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Phi-2: attention and feed-forward side by side, biases everywhere."""
    sizes = read_sizes(file, even_heads=True)
    rotated, share = rotated_part(file, sizes)
    rope_scaling(file, factors, rotated, known=())
    config = base_config(file, sizes, "phi", "PhiForCausalLM") | {
        "layer_norm_eps": file.real("attention.layer_norm_epsilon"),
        "partial_rotary_factor": share,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    }
    wide, narrow, hidden = sizes.wide, sizes.narrow, sizes.hidden
    return Blueprint(
        config,
        (
            *linear("token_embd", "model.embed_tokens", sizes.vocabulary, hidden),
            *layer_norm("output_norm", "model.final_layernorm", hidden),
            *linear("output", "lm_head", sizes.vocabulary, hidden, bias=True),
        ),
        (
            *layer_norm("attn_norm", "input_layernorm", hidden),
            *linear("attn_q", "self_attn.q_proj", wide, hidden, bias=True),
            *linear("attn_k", "self_attn.k_proj", narrow, hidden, bias=True),
            *linear("attn_v", "self_attn.v_proj", narrow, hidden, bias=True),
            *linear("attn_output", "self_attn.dense", hidden, wide, bias=True),
            *linear("ffn_up", "mlp.fc1", sizes.inner, hidden, bias=True),
            *linear("ffn_down", "mlp.fc2", hidden, sizes.inner, bias=True),
        ),
    )
