"""Between MLX arrays and the tensors that travel."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from runtime.errors import ProtocolError
from runtime.wire import Tensor

_TYPES = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "int32": mx.int32,
    "bool_": mx.bool_,
}
"""Types that the state between stages has."""


def to_tensors(arrays: Mapping[str, mx.array]) -> dict[str, Tensor]:
    """Return the bytes of evaluated arrays; see :func:`to_tensor`."""
    return {name: to_tensor(array) for name, array in arrays.items()}


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, mx.array]:
    """Return tensors as arrays; see :func:`to_array`."""
    return {name: to_array(tensor) for name, tensor in tensors.items()}


def to_tensor(array: mx.array) -> Tensor:
    """Return an evaluated array's bytes without copying them; the tensor keeps the array alive."""
    name = "bool_" if array.dtype == mx.bool_ else str(array.dtype).removeprefix("mlx.core.")
    # Python's buffer protocol has no bfloat16, so its bits travel as they are.
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    if not array.size:
        return Tensor(dtype=name, shape=tuple(array.shape), data=b"")  # a view with a zero in its shape is not cast
    return Tensor(dtype=name, shape=tuple(array.shape), data=memoryview(mx.contiguous(bits)).cast("B"))


def to_array(tensor: Tensor) -> mx.array:
    """Return a tensor as an array, copied once into MLX's memory.

    Raises:
        ProtocolError: the type is not one that the state between stages has, or the bytes do not fit the shape.
    """
    if tensor.dtype not in _TYPES:
        raise ProtocolError(f"a tensor of type {tensor.dtype} arrived; between stages go {', '.join(_TYPES)}")
    dtype = _TYPES[tensor.dtype]
    if not tensor.nbytes:
        return mx.zeros(tensor.shape, dtype=dtype)
    try:
        bits = mx.array(_items(memoryview(tensor.data).cast("B"), dtype.size, list(tensor.shape)))
    except (TypeError, ValueError) as error:
        raise ProtocolError(
            f"a tensor's {len(tensor.data)} bytes are not {tensor.dtype}{tensor.shape}: {error}"
        ) from error
    return bits.view(dtype)


def _items(raw: memoryview, size: int, shape: list[int]) -> memoryview:
    """Return bytes as unsigned integers of ``size`` bytes each, in a shape."""
    match size:
        case 1:
            return raw.cast("B", shape)
        case 2:
            return raw.cast("H", shape)
        case _:
            return raw.cast("I", shape)
