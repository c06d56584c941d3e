"""The state between stages travels bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from runtime.errors import ProtocolError
from runtime.inference.arrays import to_array, to_arrays, to_tensor, to_tensors
from runtime.wire import Tensor

BITS = {"float32": mx.uint32, "float16": mx.uint16, "bfloat16": mx.uint16}


def random_bits(dtype: str, shape: tuple[int, ...]) -> mx.array:
    """Every pattern of bits may occur: infinities, NaNs with a payload, denormal numbers."""
    kind = np.uint32 if dtype == "float32" else np.uint16
    raw = np.random.default_rng(3).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
    return mx.array(raw).view(getattr(mx, dtype))


@pytest.mark.parametrize("dtype", sorted(BITS))
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 64), (1, 37, 64), (2, 5, 3)])
def test_an_array_comes_back_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    array = random_bits(dtype, shape)
    tensor = to_tensor(array)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    # As it comes off the wire: other memory, at any address.
    moved = memoryview(b"x" + bytes(tensor.data))[1:]
    back = to_array(Tensor(tensor.dtype, tensor.shape, moved))
    assert (back.dtype, tuple(back.shape)) == (array.dtype, shape)
    assert mx.array_equal(back.view(BITS[dtype]), array.view(BITS[dtype]))


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_an_array_in_another_order_is_sent_in_its_own(dtype: str) -> None:
    array = random_bits(dtype, (1, 6, 8))
    for view in (array.swapaxes(1, 2), array[:, 1:5, ::2], array[:, ::-1]):
        expected = mx.contiguous(view).view(BITS[dtype])
        assert mx.array_equal(to_array(to_tensor(view)).view(BITS[dtype]), expected)


def test_a_tensor_keeps_its_bytes_when_the_array_is_gone() -> None:
    array = mx.arange(4096, dtype=mx.float32).reshape(1, 64, 64)
    tensor = to_tensor(array * 1)
    for _ in range(8):
        mx.eval(mx.full((1, 64, 64), -1.0))
    assert mx.array_equal(to_array(tensor), array)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint32"])
def test_a_type_that_no_state_has_is_refused(dtype: str) -> None:
    with pytest.raises(ProtocolError, match=dtype):
        to_array(Tensor(dtype, (1, 1, 0), b""))


def test_bytes_that_are_not_the_shape_are_refused() -> None:
    tensor = Tensor("float32", (1, 2, 4), bytes(32))
    object.__setattr__(tensor, "shape", (1, 2, 5))
    with pytest.raises(ProtocolError, match=r"32 bytes are not float32\(1, 2, 5\)"):
        to_array(tensor)


@pytest.mark.parametrize("array", [mx.array([[True, False, True]]), mx.arange(-3, 5).reshape(1, 2, 4)], ids=str)
def test_choices_and_flags_travel_too(array: mx.array) -> None:
    back = to_arrays(to_tensors({"chosen": array}))["chosen"]
    assert back.dtype == array.dtype
    assert mx.array_equal(back, array)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.bool_, mx.float32])
def test_an_array_without_elements_keeps_its_shape_and_type(dtype: mx.Dtype) -> None:
    back = to_array(to_tensor(mx.zeros((2, 0, 4), dtype=dtype)))
    assert (tuple(back.shape), back.dtype) == ((2, 0, 4), dtype)
