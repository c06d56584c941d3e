"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    Blueprint,
    Sizes,
    attention,
    base_config,
    endpoints,
    expert_counts,
    experts,
    head_norms,
    linear,
    pre_norms,
    read_sizes,
    rms_eps,
    swiglu,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def qwen2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Qwen2 or Qwen2.5."""
    sizes = _sizes(file, even_heads=True)
    config = base_config(file, sizes, "qwen2", "Qwen2ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (*pre_norms(sizes), *attention(sizes, bias=True, output_bias=False), *swiglu(sizes)),
    )


def qwen2moe(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Qwen1.5-MoE or Qwen2-MoE: experts, and one that every token uses."""
    sizes = _sizes(file, even_heads=True)
    count, used = expert_counts(file, normed=False)
    inner = file.positive("expert_feed_forward_length")
    shared = file.positive("expert_shared_feed_forward_length", sizes.inner)
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "qwen2_moe", "Qwen2MoeForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": shared,
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *attention(sizes, bias=True, output_bias=False),
            *experts(sizes, "mlp", count, inner),
            *linear("ffn_gate_inp_shexp", "mlp.shared_expert_gate", 1, sizes.hidden),
            *linear("ffn_gate_shexp", "mlp.shared_expert.gate_proj", shared, sizes.hidden),
            *linear("ffn_up_shexp", "mlp.shared_expert.up_proj", shared, sizes.hidden),
            *linear("ffn_down_shexp", "mlp.shared_expert.down_proj", sizes.hidden, shared),
        ),
    )


def qwen3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Qwen3."""
    sizes = _sizes(file)
    config = base_config(file, sizes, "qwen3", "Qwen3ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (*pre_norms(sizes), *attention(sizes), *head_norms(sizes), *swiglu(sizes)),
    )


def qwen3moe(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Qwen3-MoE; llama.cpp takes for granted that the weights of a token's experts add up to one."""
    sizes = _sizes(file)
    count, used = expert_counts(file)
    inner = file.positive("expert_feed_forward_length")
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "qwen3_moe", "Qwen3MoeForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (*pre_norms(sizes), *attention(sizes), *head_norms(sizes), *experts(sizes, "mlp", count, inner)),
    )


def _sizes(file: Metadata, *, even_heads: bool = False) -> Sizes:
    sizes = read_sizes(file, even_heads=even_heads)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    return sizes
