"""Phi-3, Phi-3.5 and Phi-4, which keep q, k and v in one matrix, and gate and up in another."""

from __future__ import annotations

from runtime_gguf.blueprint import (
    Blueprint,
    base_config,
    endpoints,
    linear,
    pre_norms,
    read_sizes,
    rms_eps,
    rotated_part,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def phi3(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a Phi-3. mlx-lm's has no sliding window, and llama.cpp's runs without it."""
    sizes = read_sizes(file, even_heads=True)
    rotated, share = rotated_part(file, sizes)
    file.ignore("attention.sliding_window")
    context = file.positive("context_length")
    config = base_config(file, sizes, "phi3", "Phi3ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "partial_rotary_factor": share,
        "rope_scaling": rope_scaling(file, factors, rotated, known=("longrope",)),
        "original_max_position_embeddings": file.positive("rope.scaling.original_context_length", context),
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *linear("attn_qkv", "self_attn.qkv_proj", sizes.wide + 2 * sizes.narrow, sizes.hidden),
            *linear("attn_output", "self_attn.o_proj", sizes.hidden, sizes.wide),
            *linear("ffn_up", "mlp.gate_up_proj", 2 * sizes.inner, sizes.hidden),
            *linear("ffn_down", "mlp.down_proj", sizes.hidden, sizes.inner),
        ),
    )
