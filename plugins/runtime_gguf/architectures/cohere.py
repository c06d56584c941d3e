"""Command R, and Command R7B and A.

One norm serves attention and feed-forward side by side; heads are rotated in neighbouring pairs.
"""

from __future__ import annotations

from runtime_gguf.blueprint import Blueprint, Part, attention, base_config, endpoints, read_sizes, swiglu, vector
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def command_r(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Command R, or R+ where queries and keys are normed."""
    sizes = read_sizes(file, even_heads=True)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    rope_scaling(file, factors, sizes.head_dim, known=())
    normed = file.has_tensor("blk.0.attn_q_norm.weight")
    config = base_config(file, sizes, "cohere", "CohereForCausalLM") | {
        "layer_norm_eps": file.real("attention.layer_norm_epsilon"),
        "logit_scale": file.real("logit_scale"),
        "use_qk_norm": normed,
        "tie_word_embeddings": True,
    }
    norms = (
        Part("attn_q_norm.weight", "self_attn.q_norm.weight", (sizes.heads, sizes.head_dim)),
        Part("attn_k_norm.weight", "self_attn.k_norm.weight", (sizes.kv_heads, sizes.head_dim)),
    )
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *vector("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes),
            *(norms if normed else ()),
            *swiglu(sizes),
        ),
    )


def cohere2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Command R7B or Command A: layers with a window rotate, the others do not."""
    sizes = read_sizes(file, even_heads=True)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "cohere2", "Cohere2ForCausalLM") | {
        "layer_norm_eps": file.real("attention.layer_norm_epsilon"),
        "logit_scale": file.real("logit_scale"),
        "sliding_window": file.positive("attention.sliding_window"),
        "sliding_window_pattern": file.sliding_period(sizes.layers, 4),
        "tie_word_embeddings": True,
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (*vector("attn_norm", "input_layernorm", sizes.hidden), *attention(sizes), *swiglu(sizes)),
    )
