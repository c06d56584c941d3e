"""What mlx-lm's own Metal kernels compute, in plain operations, for machines without Metal.

Cutting a model does not depend on how its layers compute, so the cut can be proved with these in their place.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def ternary_product(layer: Any, x: mx.array, packed: mx.array) -> mx.array:
    """bitnet: weights of -1, 0 and 1, four in a byte of ``packed`` (outputs / 4, inputs)."""
    weight = mx.concatenate([((packed >> shift) & 3).astype(x.dtype) - 1 for shift in (0, 2, 4, 6)])
    scale = 1 / layer.weight_scale if layer.invert_weight_scales else layer.weight_scale
    return (x @ weight.T) * scale.astype(x.dtype)


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    """muse_spark: normalize queries and keys, of which a token's row begins with (heads * size) each."""
    heads = qkvg[..., : (n_heads + n_kv_heads) * head_dim].reshape(*qkvg.shape[:-1], -1, head_dim)
    normed = mx.fast.rms_norm(heads, None, eps)
    return [normed[..., :n_heads, :] * query_scale, normed[..., n_heads:, :]]


def qk_norm_rope(qkvg: mx.array, *, rope_base: float, offset: int | mx.array, **settings: Any) -> list[mx.array]:
    """muse_spark: the same, then rotate by position."""
    return [
        mx.fast.rope(
            part.swapaxes(1, 2), part.shape[-1], traditional=True, base=rope_base, scale=1.0, offset=offset
        ).swapaxes(1, 2)
        for part in qk_norm(qkvg, **settings)
    ]


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    """muse_spark: normalize the output of attention (batch, heads, length, size), and gate it."""
    normed = mx.fast.rms_norm(x, None, eps).swapaxes(1, 2)
    return normed.reshape(gate.shape) * mx.sigmoid(gate)


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: Any,
) -> tuple[mx.array, mx.array | None]:
    """muse_spark: normalize the branch, add it to the stream, and normalize the sum for the next part."""
    scaled = branch if post_weight is None else post_weight * branch
    added = alpha * stream + beta * mx.fast.rms_norm(scaled.astype(mx.float32), None, post_eps)
    return added, None if next_norm is None else pre_norm(added, next_norm, dtype=branch.dtype)


def pre_norm(stream: mx.array, norm: Any, *, dtype: mx.Dtype) -> mx.array:
    """muse_spark: normalize the stream as the kernel above does."""
    return mx.fast.rms_norm(stream, norm.weight.astype(mx.float32), norm.eps).astype(dtype)


def expert_routing(
    logits: mx.array, bias: mx.array, *, top_k: int, multiplier: float, score_eps: float, route_scale: float
) -> tuple[mx.array, mx.array]:
    """muse_spark: choose ``top_k`` experts of logits (..., experts), with the weights of their outputs."""
    scores = mx.sigmoid(logits * multiplier) + score_eps
    chosen = mx.argpartition(-(scores + bias), top_k - 1, axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    return chosen.astype(mx.uint32), weights / weights.sum(axis=-1, keepdims=True) * route_scale


def post_expert_norm_combine(outputs: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float) -> mx.array:
    """muse_spark: normalize each expert's output (..., experts, hidden), and add them up by their weights."""
    normed = mx.fast.rms_norm(outputs * norm_weight, None, eps)
    return (normed * weights[..., None]).sum(axis=-2).astype(outputs.dtype)
