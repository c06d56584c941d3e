"""MiniMax-M2."""

from __future__ import annotations

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.blueprint import (
    SIGMOID,
    Blueprint,
    Part,
    attention,
    base_config,
    endpoints,
    experts,
    pre_norms,
    read_sizes,
    rms_eps,
    rotated_part,
    wide_norms,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling


def minimax_m2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a MiniMax-M2: experts chosen by sigmoid scores with a bias, a part of each head rotated."""
    sizes = read_sizes(file)
    rotated, _ = rotated_part(file, sizes)
    rope_scaling(file, factors, rotated, known=())
    count, used = file.positive("expert_count"), file.positive("expert_used_count")
    if used > count:
        raise CheckpointCorrupt(f"{file.path} uses {used} experts of {count}")
    if file.number("expert_gating_func", SIGMOID) != SIGMOID:
        raise ModelUnsupported(f"{file.path} chooses experts otherwise than by sigmoid scores, which is not converted")
    file.require("expert_feed_forward_length", sizes.inner, sizes.inner)
    config = base_config(file, sizes, "minimax", "MiniMaxM2ForCausalLM") | {
        "rms_norm_eps": rms_eps(file),
        "rotary_dim": rotated,
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "shared_intermediate_size": 0,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
    }
    return Blueprint(
        config,
        endpoints(file, sizes),
        (
            *pre_norms(sizes),
            *attention(sizes),
            *wide_norms(sizes),
            Part("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias", (count,)),
            *experts(sizes, "block_sparse_moe", count, sizes.inner),
        ),
    )
