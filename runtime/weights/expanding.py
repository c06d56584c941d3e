"""Unpacking quantized layers, which makes them faster on a CPU, and larger."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

BLOCK_ELEMENTS = 1 << 20
"""Weights that are unpacked at once."""


def is_packed(module: nn.Module) -> bool:
    """Whether :func:`expanded` takes the module."""
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedSwitchLinear | QuantizedMultiLinear)


def expanded_bytes(packed: nn.Module, dtype: mx.Dtype) -> int:
    """Return the bytes of a packed layer's parameters once its weights are unpacked to ``dtype``."""
    bias = packed.bias.nbytes if "bias" in packed else 0
    return int(packed.weight.size * 32 // packed.bits * dtype.size + bias)


def expanded(packed: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """Return a packed layer with its weights unpacked to ``dtype``, evaluated.

    On a CPU ``mx.dequantize`` takes as much again as its result while it works, so it is given some rows at a time. A
    stack of experts (experts, outputs, inputs) is taken as one matrix of that many rows.
    """
    words = packed.weight.shape[-1]
    columns = words * 32 // packed.bits
    parts = {name: packed[name] for name in ("weight", "scales", "biases") if packed.get(name) is not None}
    parts = {name: array.reshape(-1, array.shape[-1]) for name, array in parts.items()}
    rows = parts["weight"].shape[0]
    scale = packed.get("global_scale")
    matrix = mx.zeros((rows, columns), dtype=dtype)
    # Each expert can have a scale of its own; then a block must not reach into the next.
    unit = rows if scale is None else rows // scale.size
    block = min(unit, max(1, BLOCK_ELEMENTS // columns))
    start = 0
    while start < rows:
        part = slice(start, min(start + block, start - start % unit + unit))
        matrix[part] = mx.dequantize(
            parts["weight"][part],
            parts["scales"][part],
            parts["biases"][part] if "biases" in parts else None,
            packed.group_size,
            packed.bits,
            packed.mode,
            None if scale is None else scale.reshape(-1)[start // unit],
            dtype,
        )
        mx.eval(matrix)
        start = part.stop
    return _plain(packed, matrix.reshape(*packed.weight.shape[:-1], columns))


def _plain(packed: nn.Module, weight: mx.array) -> nn.Module:
    """Return the unpacked kind of a layer, with its weights."""
    bias = "bias" in packed
    if isinstance(packed, nn.QuantizedEmbedding):
        plain = nn.Embedding(1, 1)
    elif isinstance(packed, QuantizedSwitchLinear):
        plain = SwitchLinear(1, 1, 1, bias=bias)
    elif isinstance(packed, QuantizedMultiLinear):
        plain = MultiLinear(1, 1, 1)
    else:
        plain = nn.Linear(1, 1, bias=bias)
    plain.weight = weight
    if bias:
        plain.bias = packed.bias
    return plain
