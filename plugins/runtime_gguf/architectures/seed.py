"""Seed-OSS."""

from __future__ import annotations

from runtime_gguf.blueprint import Blueprint, attention, base_config, endpoints, read_sizes, rms_eps, swiglu, vector
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def seed_oss(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Seed-OSS."""
    sizes = read_sizes(file)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    biased = file.has_tensor("blk.0.attn_q.bias")
    out = file.has_tensor("blk.0.attn_output.bias")
    config = base_config(file, sizes, "seed_oss", "SeedOssForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "attention_bias": biased,
        "attention_out_bias": out,
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *vector("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes, bias=biased, output_bias=out),
            # llama.cpp names it as if it followed attention; it is the norm before the feed-forward part.
            *vector("post_attention_norm", "post_attention_layernorm", sizes.hidden),
            *swiglu(sizes),
        ),
    )
