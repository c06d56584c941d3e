"""Llama and what is built like it: Mistral, Mixtral, Ministral, SmolLM, SmolLM3, Granite.

llama.cpp rotates neighbouring pairs of these models' heads, so its converter interleaves the rows of q and k.
"""

from __future__ import annotations

from runtime.errors import ModelUnsupported
from runtime_gguf.blueprint import (
    Blueprint,
    Sizes,
    attention,
    base_config,
    endpoints,
    expert_counts,
    experts,
    pre_norms,
    read_sizes,
    rms_eps,
    swiglu,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def llama(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Llama, or a Mixtral where there are experts."""
    if file.number("expert_count", 0):
        return _mixtral(file, factors)
    sizes = read_sizes(file)
    biased = _biases(file)
    config = base_config(file, sizes, "llama", "LlamaForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "attention_bias": biased["attn"],
        "mlp_bias": biased["ffn"],
        "rope_scaling": _scaling(file, factors, sizes),
        "torch_dtype": "float16",
    }
    file.require("attention.scale", sizes.head_dim**-0.5, sizes.head_dim**-0.5)
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *attention(sizes, bias=biased["attn"], interleaved=True),
            *swiglu(sizes, bias=biased["ffn"]),
        ),
    )


def _mixtral(file: Metadata, factors: Factors) -> Blueprint:
    sizes = read_sizes(file, even_heads=True)
    count, used = expert_counts(file)
    file.require("expert_feed_forward_length", sizes.inner, sizes.inner)
    rope_scaling(file, factors, sizes.head_dim, known=())
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    file.require("attention.scale", sizes.head_dim**-0.5, sizes.head_dim**-0.5)
    config = base_config(file, sizes, "mixtral", "MixtralForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "num_local_experts": count,
        "num_experts_per_tok": used,
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *attention(sizes, interleaved=True),
            *experts(sizes, "block_sparse_moe", count, sizes.inner),
        ),
    )


def mistral3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Mistral Small 3.1, which is a Llama; or a Ministral 3, which attends harder the further it reads."""
    hardening = file.real("attention.temperature_scale", 0.0)
    if not hardening:
        return llama(file, factors)
    sizes = read_sizes(file)
    scaling = _scaling(file, factors, sizes)
    if scaling is None or scaling["rope_type"] != "yarn":
        raise ModelUnsupported(f"{file.path} is a Ministral 3 without YaRN, which mlx-lm's cannot be")
    config = base_config(file, sizes, "ministral3", "Ministral3ForCausalLM")
    config |= {
        "rms_norm_eps": rms_eps(file),
        "rope_parameters": {**scaling, "rope_theta": config["rope_theta"], "llama_4_scaling_beta": hardening},
    }
    return Blueprint(
        config, endpoints(file, sizes), (*pre_norms(sizes), *attention(sizes, interleaved=True), *swiglu(sizes))
    )


def smollm3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a SmolLM3, whose every fourth layer rotates nothing."""
    sizes = read_sizes(file)
    config = base_config(file, sizes, "smollm3", "SmolLM3ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "no_rope_layer_interval": 4,
        "rope_scaling": _scaling(file, factors, sizes),
    }
    return Blueprint(
        config, endpoints(file, sizes), (*pre_norms(sizes), *attention(sizes, interleaved=True), *swiglu(sizes))
    )


def granite(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Granite: a Llama with four multipliers."""
    sizes = read_sizes(file, even_heads=True)
    biased = _biases(file)
    if not file.flag("rope.scaling.finetuned", True):
        raise ModelUnsupported(f"{file.path} is a Granite without rotary embedding, which is not converted")
    config = base_config(file, sizes, "granite", "GraniteForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "attention_bias": biased["attn"],
        "mlp_bias": biased["ffn"],
        "attention_multiplier": file.real("attention.scale", sizes.head_dim**-0.5),
        "embedding_multiplier": file.real("embedding_scale", 1.0),
        "residual_multiplier": file.real("residual_scale", 1.0),
        "logits_scaling": file.real("logit_scale"),
        "rope_scaling": _scaling(file, factors, sizes),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *attention(sizes, bias=biased["attn"], interleaved=True),
            *swiglu(sizes, bias=biased["ffn"]),
        ),
    )


def _scaling(file: Metadata, factors: Factors, sizes: Sizes) -> dict[str, object] | None:
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    return rope_scaling(file, factors, sizes.head_dim)


def _biases(file: Metadata) -> dict[str, bool]:
    """Whether attention and feed-forward have biases; the check of tensors sees to it that it is all or none."""
    return {
        "attn": any(file.has_tensor(f"blk.0.attn_{part}.bias") for part in ("q", "k", "v", "output")),
        "ffn": any(file.has_tensor(f"blk.0.ffn_{part}.bias") for part in ("gate", "up", "down")),
    }
