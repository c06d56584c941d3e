"""A tensor on its way between nodes: a name of a type, a shape, and the bytes."""

from __future__ import annotations

import math

Buffer = bytes | bytearray | memoryview
"""What holds raw bytes."""

ITEM_BYTES = {
    "bool_": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
}
"""Bytes an element, by MLX's name of the type."""

MAX_RANK = 16


class Tensor:
    """A C-contiguous array as raw bytes, native (little-endian) order. It may be a field of any message.

    It is no struct, because the codec must see it as foreign: its bytes travel beside the message, not in it. The
    bytes are not copied, neither here nor on sending, so whoever made the tensor must not change them afterwards. A
    tensor that was received is a read-only view of what came off the wire.
    """

    __slots__ = ("data", "dtype", "shape")

    dtype: str
    """MLX's name of the element type, such as ``bfloat16``."""
    shape: tuple[int, ...]
    data: memoryview
    """The bytes, flat and read-only."""

    def __init__(self, dtype: str, shape: tuple[int, ...], data: Buffer) -> None:
        """Check that the bytes are as many as type and shape need.

        Raises:
            ValueError: they are not, the type is unknown, or the shape is not one.
        """
        view = memoryview(data)
        if not view.c_contiguous:
            raise ValueError("a tensor's bytes are C-contiguous; these have gaps or another order")
        expected = tensor_bytes(dtype, shape)
        if view.nbytes != expected:
            raise ValueError(f"a {dtype} tensor of shape {shape} has {expected} bytes, not {view.nbytes}")
        # A view with a zero in its shape cannot be cast, and holds nothing to keep.
        flat = view.cast("B").toreadonly() if view.nbytes else memoryview(b"")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "data", flat)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.data.nbytes

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a tensor is frozen; {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a tensor is frozen; {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape) == (other.dtype, other.shape) and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {self.shape}, {self.nbytes} bytes)"


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of this type and shape.

    Raises:
        ValueError: the type is unknown, or the shape is not one.
    """
    item = ITEM_BYTES.get(dtype)
    if item is None:
        raise ValueError(f"{dtype!r} is no element type; those there are: {', '.join(ITEM_BYTES)}")
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"{shape} is no shape: at most {MAX_RANK} sizes, none negative")
    return item * math.prod(shape)
