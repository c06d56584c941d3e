"""StarCoder 2: norms and projections with biases, a feed-forward part without a gate."""

from __future__ import annotations

from runtime_gguf.blueprint import Blueprint, Part, attention, base_config, layer_norm, linear, read_sizes
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def starcoder2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a StarCoder 2."""
    sizes = read_sizes(file, even_heads=True)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "starcoder2", "Starcoder2ForCausalLM") | {
        "norm_epsilon": file.real("attention.layer_norm_epsilon"),
        "hidden_act": "gelu_pytorch_tanh",
    }
    outside: tuple[Part, ...] = (
        *linear("token_embd", "model.embed_tokens", sizes.vocabulary, sizes.hidden),
        *layer_norm("output_norm", "model.norm", sizes.hidden),
    )
    if not config["tie_word_embeddings"]:
        outside += linear("output", "lm_head", sizes.vocabulary, sizes.hidden)
    return Blueprint(
        config,
        outside,
        (
            *layer_norm("attn_norm", "input_layernorm", sizes.hidden),
            *attention(sizes, bias=True),
            *layer_norm("ffn_norm", "post_attention_layernorm", sizes.hidden),
            *linear("ffn_up", "mlp.c_fc", sizes.inner, sizes.hidden, bias=True),
            *linear("ffn_down", "mlp.c_proj", sizes.hidden, sizes.inner, bias=True),
        ),
    )
