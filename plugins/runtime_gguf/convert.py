"""Writes a GGUF model as a folder in MLX's layout.

The safetensors file is laid out first, from the header alone, and then filled a few megabytes at a time from the memory
map, so the peak of memory does not depend on the model's size.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.architecture import Architecture, Move, read_architecture
from runtime_gguf.reader import GgufHeader, GgufTensor
from runtime_gguf.repack import F32, GROUP, KEPT, PACKED, expand, pack, values
from runtime_gguf.rope import FACTOR_TENSORS
from runtime_gguf.split import read_model
from runtime_gguf.tokenizer import write_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mapped = dict[Path, NDArray[np.uint8]]
    """The bytes of each file."""

CONVERTER = 2
"""Raised whenever the same file would be converted differently; part of the cache key."""

CHUNK_BYTES = 8 << 20
_WIDTH = {"U32": 4, "F16": 2, "BF16": 2, "F32": 4, "U8": 1}


class Slot(NamedTuple):
    """One tensor of the safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _WIDTH[self.dtype]


def convert(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Convert the GGUF file ``source``, and those that belong to it, into the existing, empty folder ``target``.

    ``progress`` is called with the bytes done so far and in all.

    Raises:
        CheckpointCorrupt: the file is damaged.
        ModelUnsupported: its architecture, tokenizer or encoding is not converted here.
    """
    import numpy as np

    header = read_model(source)
    mapped: Mapped = {
        file: np.memmap(file, dtype=np.uint8, mode="r") for file in {tensor.file for tensor in header.tensors.values()}
    }
    architecture = read_architecture(header, _rope_factors(header, mapped))
    special = write_tokenizer(header, target, int(architecture.config["vocab_size"]))
    config = {**architecture.config, **special, **_quantization(architecture)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generation = {key: value for key, value in special.items() if key.endswith("_token_id")}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    _write_weights(architecture.moves, mapped, target / "model.safetensors", progress)


def _rope_factors(header: GgufHeader, mapped: Mapped) -> dict[str, list[float]]:
    import numpy as np

    factors: dict[str, list[float]] = {}
    for name in FACTOR_TENSORS:
        tensor = header.tensors.get(name)
        if tensor is None:
            continue
        if tensor.kind != F32 or tensor.nbytes > 1 << 16:
            raise CheckpointCorrupt(f"{name} of {header.path} is not a short list of float32")
        raw = _bytes_of(tensor, mapped)
        factors[name] = [float(value) for value in np.frombuffer(raw.tobytes(), dtype="<f4")]
        if not all(map(math.isfinite, factors[name])):
            raise CheckpointCorrupt(f"{name} of {header.path} has a value that is not a number")
    return factors


def _quantization(architecture: Architecture) -> dict[str, Any]:
    """Write MLX's ``quantization`` section: the commonest form, and each module that differs from it."""
    forms = {
        move.name.removesuffix(".weight"): PACKED[move.tensor.kind] for move in architecture.moves if _is_packed(move)
    }
    if not forms:
        return {}
    (commonest, _), *_ = Counter(forms.values()).most_common(1)
    section: dict[str, Any] = {"group_size": GROUP, "bits": commonest.bits, "mode": commonest.mode}
    for module, form in forms.items():
        if form != commonest:
            section[module] = {"group_size": GROUP, "bits": form.bits, "mode": form.mode}
    return {"quantization": section, "quantization_config": section}


def _is_packed(move: Move) -> bool:
    """Whether the tensor stays packed; vectors, and what has to be added to, do not."""
    matrix = len(move.shape) > 1 and move.name.endswith(".weight")
    return move.packs and matrix and move.tensor.kind in PACKED and not move.shift


def slots(move: Move) -> list[Slot]:
    """Name the safetensors tensors that one GGUF tensor becomes."""
    if _is_packed(move):
        *rows, columns = move.shape
        form = PACKED[move.tensor.kind]
        module = move.name.removesuffix(".weight")
        packed = Slot(f"{module}.weight", "U32", (*rows, columns * form.bits // 32))
        groups = (*rows, columns // GROUP)
        if form.mode == "mxfp4":
            return [packed, Slot(f"{module}.scales", "U8", groups)]
        return [packed, Slot(f"{module}.scales", "F16", groups), Slot(f"{module}.biases", "F16", groups)]
    return [Slot(move.name, "F32" if move.shift else KEPT.get(move.tensor.kind, "F16"), move.shape)]


def _write_weights(moves: tuple[Move, ...], mapped: Mapped, file: Path, progress: Callable[[int, int], None]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for move in moves:
        for slot in slots(move):
            entries[slot.name] = {
                "dtype": slot.dtype,
                "shape": list(slot.shape),
                "data_offsets": [at, at + slot.nbytes],
            }
            at += slot.nbytes
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format asks for aligned tensors
    base = 8 + len(head)
    total = sum(move.tensor.nbytes for move in moves)
    done = 0
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        stream.truncate(base + at)
        for move in moves:
            places = [base + entries[slot.name]["data_offsets"][0] for slot in slots(move)]
            for arrays, consumed in _chunks(move, mapped):
                for index, array in enumerate(arrays):
                    stream.seek(places[index])
                    stream.write(array.data)
                    places[index] += array.nbytes
                done += consumed
                progress(done, total)
        stream.flush()
        os.fsync(stream.fileno())


def _bytes_of(tensor: GgufTensor, mapped: Mapped) -> NDArray[np.uint8]:
    return mapped[tensor.file][tensor.offset : tensor.offset + tensor.nbytes]


def _chunks(move: Move, mapped: Mapped) -> Iterator[tuple[tuple[NDArray[Any], ...], int]]:
    """Yield the converted tensor some rows at a time, with the bytes of the source that they took."""
    import numpy as np

    tensor = move.tensor
    raw = _bytes_of(tensor, mapped)
    # A vector counts as a matrix of one row, except where its elements must be reordered.
    rows = math.prod(move.shape[:-1]) if len(move.shape) > 1 else move.shape[0] if move.heads else 1
    if move.heads and len(move.shape) == 1 and tensor.kind not in KEPT:
        raise ModelUnsupported(f"tensor {tensor.name} is a list of numbers in blocks, which is not converted")
    table = raw.reshape(rows, -1)
    order = None if move.heads is None else natural_order(rows, move.heads)
    step = max(1, CHUNK_BYTES // table.shape[1])
    for start in range(0, rows, step):
        part = table[start : start + step] if order is None else table[order[start : start + step]]
        part = np.ascontiguousarray(part)
        if _is_packed(move):
            yield pack(tensor.kind, part, tensor.name), part.nbytes
        elif move.shift:
            yield (values(tensor.kind, part, tensor.name) - np.float32(move.shift),), part.nbytes
        elif tensor.kind in KEPT:
            yield (part,), part.nbytes
        else:
            yield (np.ascontiguousarray(expand(tensor.kind, part, tensor.name)),), part.nbytes


def natural_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Return where each row of a q or k projection lies in the GGUF file.

    llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head; its converter reorders the rows of
    each head from (half, pair) to (pair, half). This is the way back.
    """
    import numpy as np

    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
