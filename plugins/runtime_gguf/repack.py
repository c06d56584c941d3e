"""ggml's encodings of a matrix, turned into MLX's.

ggml's Q4_0, Q4_1 and Q8_0 blocks of 32 say exactly what MLX's affine quantization with groups of 32 says
(``weight = scale * q + bias``), so they are repacked without loss:

====  ===========================================  =============================
type  ggml block                                   MLX
====  ===========================================  =============================
Q4_0  d:f16, 16 bytes; ``w = d * (q - 8)``         scale d, bias -8d
Q4_1  d:f16, m:f16, 16 bytes; ``w = d * q + m``    scale d, bias m
Q8_0  d:f16, 32 int8; ``w = d * q``                q + 128, scale d, bias -128d
====  ===========================================  =============================

Byte j of a 4-bit block holds elements j (low nibble) and j + 16; MLX holds elements 2j and 2j + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = 32

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
"""Numbers of the ggml types that are kept as they are."""

KEPT = {F32: "F32", F16: "F16", BF16: "BF16"}
PACKED_BITS = {Q4_0: 4, Q4_1: 4, Q8_0: 8}


class Packed(NamedTuple):
    """Some rows of an MLX affine-quantized matrix with ``columns`` columns."""

    weight: NDArray[np.uint32]
    """Shape (rows, columns * bits / 32)."""
    scales: NDArray[np.float16]
    """Shape (rows, columns / 32)."""
    biases: NDArray[np.float16]


def pack(kind: int, rows: NDArray[np.uint8], tensor: str) -> Packed:
    """Repack rows of blocks, shape (rows, bytes a row), of type Q4_0, Q4_1 or Q8_0.

    Raises:
        CheckpointCorrupt: a scale is not finite, or so large that its bias would not be.
    """
    import numpy as np

    count = rows.shape[0]
    head = 4 if kind == Q4_1 else 2
    width = head + GROUP * PACKED_BITS[kind] // 8
    blocks = rows.reshape(-1, width)
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
    if kind == Q8_0:
        packed = quants ^ np.uint8(0x80)
    else:
        elements = np.concatenate([quants & 0x0F, quants >> 4], axis=1)
        packed = elements[:, 0::2] | (elements[:, 1::2] << 4)
    return Packed(
        np.ascontiguousarray(packed).view(np.uint32).reshape(count, -1),
        scales.reshape(count, -1),
        biases.reshape(count, -1),
    )


def expand(kind: int, rows: NDArray[np.uint8], tensor: str) -> NDArray[np.float16]:
    """Expand rows of any other ggml encoding, shape (rows, bytes a row), to float16, shape (rows, columns).

    Raises:
        ModelUnsupported: the type is not one that can be expanded.
        CheckpointCorrupt: the result is not finite.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):
            values = dequantize(rows, GGMLQuantizationType(kind)).astype(np.float16)
    except NotImplementedError as error:
        name = GGMLQuantizationType(kind).name
        raise ModelUnsupported(f"tensor {tensor} is encoded as {name}, which cannot be expanded here") from error
    if not np.isfinite(values).all():
        raise CheckpointCorrupt(f"tensor {tensor} holds values that float16 cannot; the file is probably damaged")
    return np.asarray(values, dtype=np.float16)
