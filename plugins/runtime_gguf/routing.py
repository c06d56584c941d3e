"""Experts as DeepSeek-V3 introduced them: chosen by sigmoid scores with a bias, beside shared ones.

The first layers have a plain feed-forward part instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.blueprint import SIGMOID, SOFTMAX, Part, Sizes, linear, stacked, swiglu
from runtime_gguf.metadata import Metadata


def split_off_predicting(file: Metadata, sizes: Sizes) -> tuple[Sizes, range]:
    """Return the sizes without the last layers, those that predict further tokens, and the numbers of these.

    Raises:
        CheckpointCorrupt: there are no others.
    """
    further = file.number("nextn_predict_layers", 0)
    if not 0 <= further < sizes.layers:
        raise CheckpointCorrupt(f"{file.path} has {sizes.layers} layers, {further} of them for further tokens")
    unused = range(sizes.layers - further, sizes.layers)
    return sizes._replace(layers=unused.start), unused


class Routing(NamedTuple):
    """The feed-forward parts of all layers."""

    config: dict[str, Any]
    layer: Callable[[int], tuple[Part, ...]]
    """Tensors of a layer's feed-forward part, by the layer's number."""


def read_routing(file: Metadata, sizes: Sizes, *, stack: str = "switch_mlp", gating: int = SOFTMAX) -> Routing:
    """Describe the feed-forward parts.

    Args:
        file: the metadata.
        sizes: the model's.
        stack: mlx-lm's name of the module of the stacked experts.
        gating: how experts are scored where the file does not say.

    Raises:
        CheckpointCorrupt: the numbers contradict each other.
        ModelUnsupported: experts are not chosen by sigmoid scores.
    """
    count, used = file.positive("expert_count"), file.positive("expert_used_count")
    inner, shared = file.positive("expert_feed_forward_length"), file.positive("expert_shared_count")
    groups = file.positive("expert_group_count", 1)
    chosen = file.positive("expert_group_used_count", groups)
    if used > count or count % groups or chosen > groups:
        raise CheckpointCorrupt(f"{file.path} uses {used} of {count} experts, in {chosen} of {groups} groups")
    if file.number("expert_gating_func", gating) != SIGMOID:
        raise ModelUnsupported(f"{file.path} chooses experts otherwise than by sigmoid scores, which is not converted")
    dense = file.number("leading_dense_block_count", 0)
    config = {
        "n_routed_experts": count,
        "num_experts_per_tok": used,
        "n_shared_experts": shared,
        "moe_intermediate_size": inner,
        "routed_scaling_factor": file.real("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": file.flag("expert_weights_norm", False),
        "n_group": groups,
        "topk_group": chosen,
        "first_k_dense_replace": dense,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    routed = (
        Part("ffn_gate_inp.weight", "mlp.gate.weight", (count, sizes.hidden), packs=False),
        Part("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", (count,)),
        *stacked(sizes, f"mlp.{stack}", count, inner),
        *linear("ffn_gate_shexp", "mlp.shared_experts.gate_proj", shared * inner, sizes.hidden),
        *linear("ffn_up_shexp", "mlp.shared_experts.up_proj", shared * inner, sizes.hidden),
        *linear("ffn_down_shexp", "mlp.shared_experts.down_proj", sizes.hidden, shared * inner),
    )
    plain = swiglu(sizes)
    return Routing(config, lambda layer: plain if layer < dense else routed)
