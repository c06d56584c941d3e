"""StableLM 2: norms with biases, a part of each head rotated."""

from __future__ import annotations

from runtime.errors import ModelUnsupported
from runtime_gguf.blueprint import (
    Blueprint,
    Part,
    attention,
    base_config,
    layer_norm,
    linear,
    read_sizes,
    rotated_part,
    swiglu,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def stablelm(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a StableLM whose queries and keys are not normed."""
    sizes = read_sizes(file, even_heads=True)
    if file.flag("use_parallel_residual", False):
        raise ModelUnsupported(f"{file.path} is a StableLM with attention and feed-forward side by side")
    rotated, share = rotated_part(file, sizes)
    rope_scaling(file, factors, rotated, known=())
    biased = file.has_tensor("blk.0.attn_q.bias")
    config = base_config(file, sizes, "stablelm", "StableLmForCausalLM") | {
        "layer_norm_eps": file.real("attention.layer_norm_epsilon"),
        "use_qkv_bias": biased,
        "partial_rotary_factor": share,
        "tie_word_embeddings": False,
    }
    outside: tuple[Part, ...] = (
        *linear("token_embd", "model.embed_tokens", sizes.vocabulary, sizes.hidden),
        *layer_norm("output_norm", "model.norm", sizes.hidden),
        *linear("output", "lm_head", sizes.vocabulary, sizes.hidden),
    )
    return Blueprint(
        config,
        outside,
        (
            *layer_norm("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes, bias=biased, output_bias=False),
            *layer_norm("ffn_norm", "post_attention_layernorm", sizes.hidden),
            *swiglu(sizes),
        ),
    )
