"""GLM-4, GLM-4.5 and 4.6."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    SIGMOID,
    Blueprint,
    attention,
    base_config,
    endpoints,
    head_norms,
    linear,
    read_sizes,
    rms_eps,
    rotated_part,
    vector,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling
from runtime_gguf.routing import read_routing, split_off_predicting


def glm4(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a GLM-4 (0414).

    It has four norms, gate and up in one matrix, and rotates half of each head in neighbouring pairs.
    """
    sizes = read_sizes(file)
    rotated, share = rotated_part(file, sizes)
    rope_scaling(file, factors, rotated, known=())
    biased = file.has_tensor("blk.0.attn_q.bias")
    config = base_config(file, sizes, "glm4", "Glm4ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "attention_bias": biased,
        "partial_rotary_factor": share,
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *vector("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes, bias=biased, output_bias=False),
            *vector("post_attention_norm", "post_self_attn_layernorm", sizes.hidden),
            *vector("ffn_norm", "post_attention_layernorm", sizes.hidden),
            *linear("ffn_up", "mlp.gate_up_proj", 2 * sizes.inner, sizes.hidden),
            *linear("ffn_down", "mlp.down_proj", sizes.hidden, sizes.inner),
            *vector("post_ffw_norm", "post_mlp_layernorm", sizes.hidden),
        ),
    )


def glm4moe(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a GLM-4.5. The file counts the layers that predict further tokens as layers of the model."""
    sizes, unused = split_off_predicting(file, read_sizes(file))
    rotated, share = rotated_part(file, sizes)
    rope_scaling(file, factors, rotated, known=())
    biased, normed = file.has_tensor("blk.0.attn_q.bias"), file.has_tensor("blk.0.attn_q_norm.weight")
    routing = read_routing(file, sizes, gating=SIGMOID)
    config = base_config(file, sizes, "glm4_moe", "Glm4MoeForCausalLM") | routing.config
    config |= {
        "rms_norm_eps": rms_eps(file),
        "attention_bias": biased,
        "use_qk_norm": normed,
        "partial_rotary_factor": share,
    }
    attending = (
        *vector("attn_norm", "input_layernorm", sizes.hidden),
        *attention(sizes, bias=biased, output_bias=False),
        *(head_norms(sizes) if normed else ()),
        *vector("post_attention_norm", "post_attention_layernorm", sizes.hidden),
    )
    return Blueprint(config, endpoints(file, sizes), lambda layer: (*attending, *routing.layer(layer)), unused)
