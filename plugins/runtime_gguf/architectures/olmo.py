"""OLMo 2 and 3, and OLMoE."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    Blueprint,
    attention,
    base_config,
    endpoints,
    expert_counts,
    experts,
    layer_types,
    pre_norms,
    read_sizes,
    rms_eps,
    swiglu,
    vector,
    wide_norms,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def olmo2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe an OLMo 2, which norms what attention and feed-forward give, not what they get; or 3, with a window."""
    sizes = read_sizes(file, even_heads=True)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    window = file.number("attention.sliding_window", 0)
    name = "olmo3" if window else "olmo2"
    config = base_config(file, sizes, name, f"{name.capitalize()}ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim),
    }
    if window:
        # Layers with a window rotate without scaling, in llama.cpp as in mlx-lm.
        file.require("rope.freq_base_swa", config["rope_theta"], config["rope_theta"])
        config |= {
            "sliding_window": window,
            "layer_types": layer_types(file.sliding_layers(sizes.layers, 4)),
        }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *attention(sizes),
            *wide_norms(sizes),
            *vector("post_attention_norm", "post_attention_layernorm", sizes.hidden),
            *swiglu(sizes),
            *vector("post_ffw_norm", "post_feedforward_layernorm", sizes.hidden),
        ),
    )


def olmoe(file: Metadata, factors: Factors) -> Blueprint:
    """Describe an OLMoE; llama.cpp takes for granted that the weights of a token's experts are left as they are."""
    sizes = read_sizes(file, even_heads=True)
    count, used = expert_counts(file, normed=False)
    file.require("expert_feed_forward_length", sizes.inner, sizes.inner)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    config = base_config(file, sizes, "olmoe", "OlmoeForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "num_experts": count,
        "num_experts_per_tok": used,
        "norm_topk_prob": False,
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (*pre_norms(sizes), *attention(sizes), *wide_norms(sizes), *experts(sizes, "mlp", count, sizes.inner)),
    )
