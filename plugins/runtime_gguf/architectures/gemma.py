"""Gemma 1, 2 and 3 (text).

Gemma's norms multiply by one plus their weight. llama.cpp's converter adds the one to the weights; it is taken off
here.
"""

from __future__ import annotations

from runtime.errors import ModelUnsupported
from runtime_gguf.blueprint import (
    Blueprint,
    Part,
    Sizes,
    attention,
    base_config,
    endpoints,
    head_norms,
    read_sizes,
    rms_eps,
    swiglu,
    vector,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling

SHIFT = 1.0
_NARROW_SCALE = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which alone scale attention by hidden size / heads. Neither file nor tensors say so:
llama.cpp goes by the number of layers, too."""
_COMMON = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def gemma(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Gemma 1."""
    sizes = _tied_sizes(file)
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "gemma", "GemmaForCausalLM") | _COMMON | {"rms_norm_eps": rms_eps(file)}
    norms = (
        *vector("attn_norm", "input_layernorm", sizes.hidden, SHIFT),
        *vector("ffn_norm", "post_attention_layernorm", sizes.hidden, SHIFT),
    )
    return Blueprint(config, endpoints(file, sizes, shift=SHIFT), (*norms, *attention(sizes), *swiglu(sizes)))


def gemma2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Gemma 2. mlx-lm's lets every layer see everything, so the sliding window is of no use to it."""
    sizes = _tied_sizes(file)
    rope_scaling(file, factors, sizes.head_dim, known=())
    file.ignore("attention.sliding_window", "attention.sliding_window_pattern")
    config = base_config(file, sizes, "gemma2", "Gemma2ForCausalLM") | _COMMON
    config |= {
        "rms_norm_eps": rms_eps(file),
        "attn_logit_softcapping": file.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.real("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _attention_scalar(file, sizes),
    }
    return Blueprint(
        config, endpoints(file, sizes, shift=SHIFT), (*_four_norms(sizes), *attention(sizes), *swiglu(sizes))
    )


def gemma3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe the language model of a Gemma 3."""
    sizes = read_sizes(file)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    file.require("final_logit_softcapping", 0.0, 0.0)
    window = file.number("attention.sliding_window", 0)
    if window <= 0:
        raise ModelUnsupported(f"{file.path} is a Gemma 3 without a sliding window, which is not converted")
    config = base_config(file, sizes, "gemma3_text", "Gemma3ForCausalLM") | _COMMON
    config |= {
        "rms_norm_eps": rms_eps(file),
        "rope_theta": file.real("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": file.real("rope.freq_base_swa", 10_000.0),
        "rope_scaling": rope_scaling(file, factors, sizes.head_dim, known=("linear",)),
        "sliding_window": window,
        "sliding_window_pattern": file.sliding_period(sizes.layers, 6),
        "query_pre_attn_scalar": _attention_scalar(file, sizes),
    }
    return Blueprint(
        config,
        endpoints(file, sizes, shift=SHIFT),
        (*_four_norms(sizes), *attention(sizes), *head_norms(sizes, shift=SHIFT), *swiglu(sizes)),
    )


def _tied_sizes(file: Metadata) -> Sizes:
    sizes = read_sizes(file)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    if file.has_tensor("output.weight"):
        raise ModelUnsupported(
            f"{file.path} has a head of its own; mlx-lm's {file.architecture} uses the embedding as its head"
        )
    return sizes


def _attention_scalar(file: Metadata, sizes: Sizes) -> int:
    if sizes.layers == _NARROW_SCALE[file.architecture]:
        return sizes.hidden // sizes.heads
    return sizes.head_dim


def _four_norms(sizes: Sizes) -> tuple[Part, ...]:
    return (
        *vector("attn_norm", "input_layernorm", sizes.hidden, SHIFT),
        *vector("post_attention_norm", "post_attention_layernorm", sizes.hidden, SHIFT),
        *vector("ffn_norm", "pre_feedforward_layernorm", sizes.hidden, SHIFT),
        *vector("post_ffw_norm", "post_feedforward_layernorm", sizes.hidden, SHIFT),
    )
