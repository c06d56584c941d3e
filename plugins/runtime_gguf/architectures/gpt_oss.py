"""gpt-oss: experts in MXFP4, attention sinks, every other layer with a sliding window."""

from __future__ import annotations

from runtime.errors import CheckpointCorrupt
from runtime_gguf.blueprint import (
    Blueprint,
    Part,
    attention,
    base_config,
    endpoints,
    expert_counts,
    layer_types,
    linear,
    read_sizes,
    rms_eps,
    stacked,
    vector,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def gpt_oss(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a gpt-oss."""
    sizes = read_sizes(file)
    count, used = expert_counts(file)
    if not file.has_tensor("output.weight"):
        raise CheckpointCorrupt(f"{file.path} has no output.weight, and a gpt-oss is never without")
    inner = file.positive("expert_feed_forward_length", sizes.inner)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    config = base_config(file, sizes, "gpt_oss", "GptOssForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "intermediate_size": inner,
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "sliding_window": file.positive("attention.sliding_window"),
        "layer_types": layer_types(file.sliding_layers(sizes.layers, 2)),
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim, known=("yarn", "linear")),
    }
    widths = {"gate": inner, "up": inner, "down": sizes.hidden}
    biases = (
        Part(f"ffn_{name}_exps.bias", f"mlp.experts.{name}_proj.bias", (count, width)) for name, width in widths.items()
    )
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *vector("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes, bias=True),
            Part("attn_sinks.weight", "self_attn.sinks", (sizes.heads,)),
            *vector("post_attention_norm", "post_attention_layernorm", sizes.hidden),
            *linear("ffn_gate_inp", "mlp.router", count, sizes.hidden, bias=True),
            *stacked(sizes, "mlp.experts", count, inner),
            *biases,
        ),
    )
