"""ggml's encodings of a matrix, turned into MLX's.

ggml's Q4_0, Q4_1 and Q8_0 blocks of 32 say exactly what MLX's affine quantization with groups of 32 says
(``weight = scale * q + bias``), so they are repacked without loss:

=====  ===========================================  =============================
type   ggml block                                   MLX
=====  ===========================================  =============================
Q4_0   d:f16, 16 bytes; ``w = d * (q - 8)``         scale d, bias -8d
Q4_1   d:f16, m:f16, 16 bytes; ``w = d * q + m``    scale d, bias m
Q8_0   d:f16, 32 int8; ``w = d * q``                q + 128, scale d, bias -128d
MXFP4  e:u8, 16 bytes; ``w = e2m1(q) * 2^(e-127)``  mode mxfp4: the same codes and e
=====  ===========================================  =============================

Byte j of a 4-bit block holds elements j (low nibble) and j + 16; MLX holds elements 2j and 2j + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = 32

F32, F16, Q4_0, Q4_1, Q8_0, BF16, MXFP4 = 0, 1, 2, 3, 8, 30, 39
"""Numbers of the ggml types that are kept as they are."""

KEPT = {F32: "F32", F16: "F16", BF16: "BF16"}


class Form(NamedTuple):
    """One of MLX's ways to pack weights."""

    bits: int
    mode: str


PACKED = {Q4_0: Form(4, "affine"), Q4_1: Form(4, "affine"), Q8_0: Form(8, "affine"), MXFP4: Form(4, "mxfp4")}


def pack(kind: int, rows: NDArray[np.uint8], tensor: str) -> tuple[NDArray[Any], ...]:
    """Repack rows of blocks, shape (rows, bytes a row), of a type in :data:`PACKED`.

    Returns:
        Weights of uint32, shape (rows, columns * bits / 32); scales, shape (rows, columns / 32), uint8 of MXFP4 and
        else float16; and of the affine types biases like the scales.

    Raises:
        CheckpointCorrupt: a scale is not finite, or so large that its bias would not be.
    """
    import numpy as np

    count = rows.shape[0]
    if kind == MXFP4:
        blocks = rows.reshape(-1, 1 + GROUP // 2)
        return _words(_neighbours(blocks[:, 1:]), count), np.ascontiguousarray(blocks[:, 0]).reshape(count, -1)
    head = 4 if kind == Q4_1 else 2
    blocks = rows.reshape(-1, head + GROUP * PACKED[kind].bits // 8)
    scales = blocks[:, :2].copy().view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        match kind:
            case 2:
                biases = scales * np.float16(-8)
            case 3:
                biases = blocks[:, 2:4].copy().view(np.float16)
            case _:
                biases = scales * np.float16(-128)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise CheckpointCorrupt(f"tensor {tensor} has a quantization scale that float16 cannot hold; fetch it again")
    quants = blocks[:, head:]
    packed = quants ^ np.uint8(0x80) if kind == Q8_0 else _neighbours(quants)
    return _words(packed, count), scales.reshape(count, -1), biases.reshape(count, -1)


def _neighbours(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put neighbouring elements into one byte, where ggml has j and j + 16. Shape (blocks, 16)."""
    import numpy as np

    elements = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1)
    neighbours: NDArray[np.uint8] = elements[:, 0::2] | (elements[:, 1::2] << 4)
    return neighbours


def _words(packed: NDArray[np.uint8], rows: int) -> NDArray[np.uint32]:
    import numpy as np

    return np.ascontiguousarray(packed).view(np.uint32).reshape(rows, -1)


def values(kind: int, rows: NDArray[np.uint8], tensor: str) -> NDArray[np.float32]:
    """Expand rows of any ggml encoding, shape (rows, bytes a row), to float32, shape (rows, columns).

    Raises:
        ModelUnsupported: the type is not one that can be expanded.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):
            return np.asarray(dequantize(rows, GGMLQuantizationType(kind)), dtype=np.float32)
    except NotImplementedError as error:
        name = GGMLQuantizationType(kind).name
        raise ModelUnsupported(f"tensor {tensor} is encoded as {name}, which cannot be expanded here") from error


def expand(kind: int, rows: NDArray[np.uint8], tensor: str) -> NDArray[np.float16]:
    """Expand rows as :func:`values` does, and round them to float16.

    Raises:
        ModelUnsupported: the type is not one that can be expanded.
        CheckpointCorrupt: the result is not finite.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        halves = values(kind, rows, tensor).astype(np.float16)
    if not np.isfinite(halves).all():
        raise CheckpointCorrupt(f"tensor {tensor} holds values that float16 cannot; the file is probably damaged")
    return halves
