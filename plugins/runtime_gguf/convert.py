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

from runtime.errors import CheckpointCorrupt
from runtime_gguf.architecture import ROPE_FREQS, Architecture, Move, read_architecture
from runtime_gguf.reader import GgufHeader, GgufTensor, read_header
from runtime_gguf.repack import BF16, F16, F32, GROUP, KEPT, PACKED_BITS, expand, pack
from runtime_gguf.tokenizer import write_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONVERTER = 1
"""Raised whenever the same file would be converted differently; part of the cache key."""

CHUNK_BYTES = 8 << 20
_WIDTH = {"U32": 4, "F16": 2, "BF16": 2, "F32": 4}


class Slot(NamedTuple):
    """One tensor of the safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _WIDTH[self.dtype]


def convert(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Convert the GGUF file ``source`` into the existing, empty folder ``target``.

    ``progress`` is called with the bytes of ``source`` done so far and in all.

    Raises:
        CheckpointCorrupt: the file is damaged.
        ModelUnsupported: its architecture, tokenizer or encoding is not converted here.
    """
    import numpy as np

    header = read_header(source)
    mapped: NDArray[np.uint8] = np.memmap(source, dtype=np.uint8, mode="r")
    architecture = read_architecture(header, _rope_factors(header, mapped))
    special = write_tokenizer(header, target, int(architecture.config["vocab_size"]))
    config = {**architecture.config, **special, **_quantization(architecture)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generation = {key: value for key, value in special.items() if key.endswith("_token_id")}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    _write_weights(architecture.moves, mapped, target / "model.safetensors", progress)


def _rope_factors(header: GgufHeader, mapped: NDArray[np.uint8]) -> list[float] | None:
    import numpy as np

    tensor = header.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.kind != F32 or tensor.nbytes > 1 << 16:
        raise CheckpointCorrupt(f"{ROPE_FREQS} of {header.path} is not a short list of float32")
    raw = mapped[tensor.offset : tensor.offset + tensor.nbytes]
    return [float(value) for value in np.frombuffer(raw.tobytes(), dtype="<f4")]


def _quantization(architecture: Architecture) -> dict[str, Any]:
    """Write MLX's ``quantization`` section: the commonest form, and each module that differs from it."""
    bits = {
        move.name.removesuffix(".weight"): PACKED_BITS[move.tensor.kind]
        for move in architecture.moves
        if _is_packed(move.tensor)
    }
    if not bits:
        return {}
    (commonest, _), *_ = Counter(bits.values()).most_common(1)
    section: dict[str, Any] = {"group_size": GROUP, "bits": commonest, "mode": "affine"}
    for module, width in bits.items():
        if width != commonest:
            section[module] = {"group_size": GROUP, "bits": width}
    return {"quantization": section, "quantization_config": section}


def _is_packed(tensor: GgufTensor) -> bool:
    return tensor.kind in PACKED_BITS and len(tensor.shape) == 2


def slots(move: Move) -> list[Slot]:
    """Name the safetensors tensors that one GGUF tensor becomes."""
    tensor = move.tensor
    if _is_packed(tensor):
        rows, columns = tensor.shape
        module = move.name.removesuffix(".weight")
        return [
            Slot(f"{module}.weight", "U32", (rows, columns * PACKED_BITS[tensor.kind] // 32)),
            Slot(f"{module}.scales", "F16", (rows, columns // GROUP)),
            Slot(f"{module}.biases", "F16", (rows, columns // GROUP)),
        ]
    return [Slot(move.name, KEPT.get(tensor.kind, "F16"), tensor.shape)]


def _write_weights(
    moves: tuple[Move, ...], mapped: NDArray[np.uint8], file: Path, progress: Callable[[int, int], None]
) -> None:
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


def _chunks(move: Move, mapped: NDArray[np.uint8]) -> Iterator[tuple[tuple[NDArray[Any], ...], int]]:
    """Yield the converted tensor some rows at a time, with the bytes of the source that they took."""
    import numpy as np

    tensor = move.tensor
    raw = mapped[tensor.offset : tensor.offset + tensor.nbytes]
    # A vector counts as a matrix of one row, except where its elements must be reordered.
    rows = tensor.shape[0] if len(tensor.shape) > 1 or move.heads else 1
    table = raw.reshape(rows, -1)
    order = None if move.heads is None else natural_order(rows, move.heads)
    step = max(1, CHUNK_BYTES // table.shape[1])
    for start in range(0, rows, step):
        part = table[start : start + step] if order is None else table[order[start : start + step]]
        part = np.ascontiguousarray(part)
        if _is_packed(tensor):
            yield tuple(pack(tensor.kind, part, tensor.name)), part.nbytes
        elif tensor.kind in (F32, F16, BF16):
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
