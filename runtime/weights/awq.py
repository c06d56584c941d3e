"""AutoAWQ's packing, turned into MLX's.

AutoAWQ holds a linear layer as ``qweight`` [inputs, outputs / 8], eight 4-bit values to an int32 in the order 0, 2, 4,
6, 1, 3, 5, 7 (https://github.com/casper-hansen/AutoAWQ), with ``scales`` [groups, outputs] and ``qzeros`` [groups,
outputs / 8], and means ``(q - zero) * scale``. MLX packs along the inputs, in order, and means ``q * scale + bias``.
mlx-lm reads checkpoints that call themselves GPTQ in the same way, unless they have ``g_idx``.
"""

from __future__ import annotations

import mlx.core as mx

_SHIFTS = [0, 16, 4, 20, 8, 24, 12, 28]
"""Bits below the value of each output in an int32."""
_BITS, _PER_WORD = 4, 8


def repacked(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return the weights with AutoAWQ's triples in MLX's form, lazily; others as they are.

    Raises:
        KeyError: packed weights lack their scales.
        ValueError: shapes do not fit each other.
    """
    packed = {name.removesuffix(".qweight") for name in weights if name.endswith(".qweight")}
    converted = {
        name: array
        for name, array in weights.items()
        if not (name.rpartition(".")[0] in packed and name.endswith((".qweight", ".qzeros", ".scales")))
    }
    for module in packed:
        scales = weights[f"{module}.scales"]
        zeros = weights.get(f"{module}.qzeros")
        # Without zeros the values are symmetric around the middle of their range.
        middle = mx.full(scales.shape, 1 << (_BITS - 1), dtype=mx.float32) if zeros is None else _values(zeros)
        converted[f"{module}.weight"] = _packed(_values(weights[f"{module}.qweight"]).T)
        converted[f"{module}.scales"] = mx.contiguous(scales.T)
        converted[f"{module}.biases"] = (-middle.astype(mx.float32) * scales).T.astype(scales.dtype)
    return converted


def _values(words: mx.array) -> mx.array:
    """Return the values in int32 words: [rows, columns / 8] to [rows, columns]."""
    return ((words[..., None] >> mx.array(_SHIFTS)) & ((1 << _BITS) - 1)).reshape(words.shape[0], -1)


def _packed(values: mx.array) -> mx.array:
    """Return values as uint32 words, in order: [rows, columns] to [rows, columns / 8]."""
    words = values.reshape(values.shape[0], -1, _PER_WORD).astype(mx.uint32)
    return (words << mx.arange(0, 32, _BITS).astype(mx.uint32)).sum(axis=-1).astype(mx.uint32)
