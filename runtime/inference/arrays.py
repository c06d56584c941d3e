"""Between MLX arrays and the tensors that travel."""

from __future__ import annotations

import mlx.core as mx

from runtime.errors import ProtocolError
from runtime.wire import Tensor

_TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
"""Types that hidden states have."""


def to_tensor(array: mx.array) -> Tensor:
    """Return an evaluated array's bytes without copying them; the tensor keeps the array alive."""
    name = str(array.dtype).removeprefix("mlx.core.")
    # Python's buffer protocol has no bfloat16, so its bits travel as they are.
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return Tensor(dtype=name, shape=tuple(array.shape), data=memoryview(mx.contiguous(bits)).cast("B"))


def to_array(tensor: Tensor) -> mx.array:
    """Return a tensor as an array, copied once into MLX's memory.

    Raises:
        ProtocolError: the type is not one that hidden states have, or the bytes do not fit the shape.
    """
    dtype = _TYPES.get(tensor.dtype)
    if dtype is None:
        raise ProtocolError(f"a tensor of type {tensor.dtype} arrived; hidden states are {', '.join(_TYPES)}")
    try:
        raw = memoryview(tensor.data).cast("B")
        shape = list(tensor.shape)
        bits = mx.array(raw.cast("f", shape) if dtype == mx.float32 else raw.cast("H", shape))
    except (TypeError, ValueError) as error:
        raise ProtocolError(
            f"a tensor's {len(tensor.data)} bytes are not {tensor.dtype}{tensor.shape}: {error}"
        ) from error
    return bits if dtype == mx.float32 else bits.view(dtype)
