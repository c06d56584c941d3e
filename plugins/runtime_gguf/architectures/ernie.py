"""ERNIE 4.5, the dense ones; heads are rotated in neighbouring pairs."""

from __future__ import annotations

from runtime_gguf.blueprint import Blueprint, attention, base_config, endpoints, pre_norms, read_sizes, rms_eps, swiglu
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def ernie4_5(file: Metadata, factors: Factors) -> Blueprint:
    """Describe an ERNIE 4.5."""
    sizes = read_sizes(file)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    rope_scaling(file, factors, sizes.head_dim, known=())
    config = base_config(file, sizes, "ernie4_5", "Ernie4_5ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "use_bias": False,
    }
    return Blueprint(config, endpoints(file, sizes), (*pre_norms(sizes), *attention(sizes), *swiglu(sizes)))
