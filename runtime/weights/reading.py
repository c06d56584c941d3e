"""The arrays that an architecture's ``sanitize()`` is given: those of the slice, and stand-ins for all others.

mlx-lm's ``sanitize()`` takes for granted that it sees the whole model. Many look at layer 0 to tell how the experts of
every layer are stored, some look for a tensor anywhere, some want all layers or the head. So it is shown the whole
index: tensors of the slice as arrays that are read when they are evaluated, every other one as a constant of the same
shape and type, which is never evaluated and takes no memory. Whatever it decides, it decides as for the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.core as mx

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, TensorInfo
from runtime.spi.checkpoint import MAX_LAYERS
from runtime.weights.layers import expert_of, is_speculative, layer_of, renumbered

MAX_EXPERTS = 4096
"""Far beyond any layer's."""
MAX_EXPERT_TENSORS = 1 << 18
"""Of one layer; far beyond any model's."""

_DTYPES = {
    "BOOL": mx.bool_,
    "F8_E4M3": mx.uint8,  # MLX reads these types as bytes
    "F8_E5M2": mx.uint8,
    "F8_E8M0": mx.uint8,
    "I8": mx.int8,
    "U8": mx.uint8,
    "I16": mx.int16,
    "U16": mx.uint16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I32": mx.int32,
    "U32": mx.uint32,
    "F32": mx.float32,
    "I64": mx.int64,
    "U64": mx.uint64,
    "F64": mx.float32,
    "C64": mx.complex64,
}


def own(checkpoint: Checkpoint, span: LayerSpan) -> list[TensorInfo]:
    """Return the tensors here that can be the slice's: of its layers, and of no layer, of which it may own some."""
    return [
        tensor
        for tensor in checkpoint.tensors.values()
        if tensor.name not in checkpoint.absent
        and not is_speculative(tensor.name, span.total)
        and ((layer := layer_of(tensor.name)) is None or layer in span)
    ]


def lazy_arrays(tensors: Iterable[TensorInfo]) -> dict[str, mx.array]:
    """Return arrays that are read from their files when they are evaluated.

    Raises:
        CheckpointCorrupt: MLX cannot read a file.
    """
    by_file: dict[Path, list[str]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.file, []).append(tensor.name)
    weights: dict[str, mx.array] = {}
    for file, names in by_file.items():
        try:
            arrays = mx.load(str(file))
        except RuntimeError as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}") from error
        weights.update((name, arrays[name]) for name in names)
    return weights


def stand_ins(tensors: Mapping[str, TensorInfo], span: LayerSpan | None) -> dict[str, mx.array]:
    """Return constants in place of the tensors of other layers, or of all tensors where there is no slice.

    There can be tens of thousands of experts, which are stacked one by one. The experts of one layer are enough to tell
    how all are stored. Where the slice lacks layer 0 they are given as that layer's, as this is where architectures
    look; and every expert has all its tensors, even if the files at hand have only some of that layer.

    Raises:
        CheckpointCorrupt: a tensor's name has a number of an expert that no model has so many of.
    """
    total = MAX_LAYERS if span is None else span.total
    known = [tensor for tensor in tensors.values() if not is_speculative(tensor.name, total)]
    absent = [
        tensor
        for tensor in known
        if span is None or ((layer := layer_of(tensor.name)) is not None and layer not in span)
    ]
    found = {tensor.name: _constant(tensor) for tensor in absent if expert_of(tensor.name) is None}
    has_layer_0 = span is not None and span.is_first
    experts = [tensor for tensor in (absent if has_layer_0 else known) if expert_of(tensor.name) is not None]
    if experts:
        example = min(layer_of(tensor.name) or 0 for tensor in experts) if has_layer_0 else 0
        kinds = {renumbered(tensor.name, layer=example, expert=0): tensor for tensor in experts}
        count = _experts(tensors)
        if count * len(kinds) > MAX_EXPERT_TENSORS:
            raise CheckpointCorrupt(
                f"the names of the tensors tell of {count} experts of {len(kinds)} tensors each, "
                f"and no layer has more than {MAX_EXPERT_TENSORS} in all"
            )
        for name, tensor in kinds.items():
            for expert in range(count):
                found[renumbered(name, expert=expert)] = _constant(tensor)
    return found


def _experts(names: Iterable[str]) -> int:
    """Return how many experts a layer has: one more than the largest number, as some may be in files elsewhere."""
    largest, name = max((expert_of(name) or 0, name) for name in names)
    if largest >= MAX_EXPERTS:
        raise CheckpointCorrupt(
            f"the tensor {name} is of expert {largest}, and no layer has more than {MAX_EXPERTS} experts"
        )
    return largest + 1


def absent_outside_layers(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return constants in place of the embeddings, heads and the like whose bytes are not here, as others own them.

    Matrices are NaN, so that it shows if a slice owns one all the same.
    """
    outside = [checkpoint.tensors[name] for name in sorted(checkpoint.absent) if layer_of(name) is None]
    return {tensor.name: _constant(tensor, math.nan if len(tensor.shape) > 1 else 1) for tensor in outside}


def _constant(tensor: TensorInfo, value: float = 1) -> mx.array:
    # Ones by default: one architecture (Hadamard rotations) checks the signs that it is given.
    dtype = _DTYPES.get(tensor.dtype, mx.uint8)
    exact = value if mx.issubdtype(dtype, mx.floating) else 1
    return mx.broadcast_to(mx.array(exact, dtype=dtype), tensor.shape)
