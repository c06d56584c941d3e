from __future__ import annotations

import array

import pytest

from runtime.wire import Tensor, tensor_bytes


def test_a_tensor_keeps_the_name_of_its_type_and_does_not_copy_its_bytes() -> None:
    source = bytearray(range(12))
    tensor = Tensor("bfloat16", (2, 3), source)
    source[0] = 255
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("bfloat16", (2, 3), 12)
    assert tensor.data[0] == 255
    assert tensor.data.readonly


def test_a_tensor_takes_a_buffer_of_any_element_type() -> None:
    assert Tensor("float32", (3,), memoryview(array.array("f", [1, 2, 3]))).nbytes == 12


def test_a_tensor_is_refused_when_its_bytes_do_not_fill_its_shape() -> None:
    with pytest.raises(ValueError, match="has 24 bytes, not 23"):
        Tensor("float32", (2, 3), bytes(23))


def test_a_tensor_of_an_unknown_type_is_refused_with_the_types_there_are() -> None:
    with pytest.raises(ValueError, match=r"'float8' is no element type.*bfloat16"):
        Tensor("float8", (1,), b"x")


@pytest.mark.parametrize("shape", [(-1, -1), (1,) * 17])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is no shape"):
        tensor_bytes("uint8", shape)


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        Tensor("uint8", (4,), memoryview(bytes(8))[::2])


def test_a_tensor_cannot_be_changed() -> None:
    tensor = Tensor("uint8", (1,), b"x")
    with pytest.raises(AttributeError, match="frozen"):
        tensor.shape = (2,)
    with pytest.raises(AttributeError, match="frozen"):
        del tensor.data


def test_tensors_are_equal_by_value_and_an_empty_one_holds_nothing() -> None:
    assert Tensor("uint8", (2,), b"ab") == Tensor("uint8", (2,), bytearray(b"ab"))
    assert Tensor("uint8", (2,), b"ab") != Tensor("int8", (2,), b"ab")
    assert Tensor("float32", (0, 4), b"").nbytes == 0
