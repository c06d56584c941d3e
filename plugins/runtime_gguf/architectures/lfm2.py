"""LFM2: short convolutions in most layers, attention in some."""

from __future__ import annotations

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.blueprint import Blueprint, Part, base_config, linear, rms_eps, sized, vector
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def lfm2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a dense LFM2. A layer without key-value heads is a convolution."""
    counts = file.numbers("attention.head_count_kv", file.positive("block_count"))
    attending = [layer for layer, count in enumerate(counts) if count]
    if len({counts[layer] for layer in attending}) != 1:
        raise CheckpointCorrupt(f"{file.path} has layers with different numbers of key-value heads, or none with any")
    if file.has_tensor("output.weight"):
        raise ModelUnsupported(f"{file.path} has a head of its own; mlx-lm's lfm2 uses the embedding as its head")
    heads, hidden = file.positive("attention.head_count"), file.positive("embedding_length")
    if hidden % heads or heads % counts[attending[0]]:
        raise CheckpointCorrupt(f"{file.path} describes no model: {heads} heads in a hidden size of {hidden}")
    sizes = sized(file, hidden // heads, counts[attending[0]])
    rope_scaling(file, factors, sizes.head_dim, known=())
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        file.require(key, sizes.head_dim, sizes.head_dim)
    file.require("attention.sliding_window", 0, 0)
    taps = file.positive("shortconv.l_cache")
    config = base_config(file, sizes, "lfm2", "Lfm2ForCausalLM") | {
        "norm_eps": rms_eps(file),
        "conv_bias": False,
        "conv_L_cache": taps,
        "block_dim": hidden,
        "block_ff_dim": sizes.inner,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["full_attention" if count else "conv" for count in counts],
        "full_attn_idxs": attending,
    }
    # llama.cpp calls the last norm by either name.
    last = "token_embd_norm" if file.has_tensor("token_embd_norm.weight") else "output_norm"
    common = (
        *vector("attn_norm", "operator_norm", hidden),
        *vector("ffn_norm", "ffn_norm", hidden),
        *linear("ffn_gate", "feed_forward.w1", sizes.inner, hidden),
        *linear("ffn_up", "feed_forward.w3", sizes.inner, hidden),
        *linear("ffn_down", "feed_forward.w2", hidden, sizes.inner),
    )
    attention = (
        *linear("attn_q", "self_attn.q_proj", sizes.wide, hidden),
        *linear("attn_k", "self_attn.k_proj", sizes.narrow, hidden),
        *linear("attn_v", "self_attn.v_proj", sizes.narrow, hidden),
        *linear("attn_output", "self_attn.out_proj", hidden, sizes.wide),
        *vector("attn_q_norm", "self_attn.q_layernorm", sizes.head_dim),
        *vector("attn_k_norm", "self_attn.k_layernorm", sizes.head_dim),
    )
    convolution = (
        Part("shortconv.conv.weight", "conv.conv.weight", (hidden, taps, 1), packs=False),
        *linear("shortconv.in_proj", "conv.in_proj", 3 * hidden, hidden),
        *linear("shortconv.out_proj", "conv.out_proj", hidden, hidden),
    )
    return Blueprint(
        config,
        (
            *linear("token_embd", "model.embed_tokens", sizes.vocabulary, hidden),
            *vector(last, "model.embedding_norm", hidden),
        ),
        lambda layer: (*common, *(attention if counts[layer] else convolution)),
    )
