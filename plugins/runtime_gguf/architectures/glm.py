"""GLM-4 (0414): four norms, gate and up in one matrix, half of each head rotated in neighbouring pairs."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    Blueprint,
    attention,
    base_config,
    endpoints,
    linear,
    read_sizes,
    rms_eps,
    rotated_part,
    vector,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def glm4(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a GLM-4."""
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
