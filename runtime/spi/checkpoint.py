"""What a folder in the Hugging Face or MLX layout holds, read from headers alone.

Safetensors: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors). Everything the header claims is checked against the file's size before
anyone relies on it.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import struct
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointCorrupt, ModelNotFound
from runtime.spi.digest import digest

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_DIMENSIONS = 32
"""Far beyond any tensor; the product of a million sides would take minutes to compute."""

MAX_LAYERS = 1 << 16
"""Far beyond any model; what is claimed above it is not used to size anything."""

_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """Safetensors' name: ``F32``, ``BF16``, ``U32``."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """First byte in the file."""
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def range(self) -> tuple[int, int]:
        """First byte in the file, and the one after the last."""
        return self.offset, self.offset + self.nbytes


class Checkpoint(msgspec.Struct, frozen=True, dict=True):
    """A model's configuration and the headers of its tensors."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    absent: frozenset[str] = frozenset()
    """Names of tensors whose bytes are not on this machine: nothing but their headers may be used. Where their bytes
    would be, their files read as zeros, so whatever loads tensors must leave these out."""

    @property
    def model_type(self) -> str:
        """``model_type`` of the configuration."""
        return str(self.config["model_type"])

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration; multimodal models nest it."""
        nested = self.config.get("text_config")
        return {**self.config, **nested} if isinstance(nested, dict) else self.config

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"):
            value = self.text_config.get(key)
            if type(value) is int and 0 < value <= MAX_LAYERS:  # not a bool, which is an int too
                return value
        for key in ("hybrid_override_pattern", "layers_block_type"):  # a letter, or a word, for each layer
            value = self.text_config.get(key)
            if isinstance(value, str | list) and 0 < len(value) <= MAX_LAYERS:
                return len(value)
        raise CheckpointCorrupt(f"{self.path / 'config.json'} does not say how many layers the model has")

    @property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens; 4096 where the configuration does not say."""
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx"):
            value = self.text_config.get(key)
            if type(value) is int and value > 0:
                return value
        return 4096

    @property
    def quantization(self) -> dict[str, Any] | None:
        """MLX's ``quantization`` section, where the weights are packed."""
        value = self.config.get("quantization")
        return value if isinstance(value, dict) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 that tells models apart: two nodes with equal digests serve one model, tokenizer included.

        It covers the configuration, the tokenizer's files, of each tensor its name, type, shape and place, and some
        bytes from the middle of up to :data:`~runtime.spi.digest.SAMPLED_TENSORS` of them. All of the weights would
        take minutes to read; training, merging and quantizing change nearly every byte of the tensors that they touch.

        Raises:
            CheckpointCorrupt: a file cannot be read any more.
        """
        return digest(self.path, self.config, self.tensors.values())


def read_checkpoint(path: Path, files: Sequence[Path] | None = None) -> Checkpoint:
    """Read ``config.json`` and every safetensors header in a folder.

    Args:
        files: the weights, where they are not in the folder.

    Raises:
        ModelNotFound: the folder or its ``config.json`` is not there.
        CheckpointCorrupt: a file is unreadable, truncated or inconsistent.
    """
    if not path.is_dir():
        raise ModelNotFound(f"there is no model folder at {path}")
    config = _read_config(path)
    if files is None:
        files = [path / name for name in weight_files(path, (file.name for file in path.iterdir()))]
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for tensor in read_safetensors_header(file):
            if tensor.name in tensors:
                raise CheckpointCorrupt(
                    f"tensor {tensor.name} is in both {tensors[tensor.name].file.name} and {file.name} of {path}"
                )
            tensors[tensor.name] = tensor
    return Checkpoint(path=path, config=config, tensors=tensors)


def lone_config(name: str) -> Checkpoint | None:
    """Return a checkpoint without tensors for the path of a ``config.json``, or of a folder that has one and no more.

    Raises:
        CheckpointCorrupt: the file is not such a configuration.
    """
    path = Path(name).expanduser()
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        return None
    return Checkpoint(path=folder, config=_read_config(folder), tensors={})


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"{path} is not a model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets nested a thousand deep
        raise CheckpointCorrupt(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointCorrupt(f"{file} names no model_type, so no architecture can be chosen")
    return config


def weight_files(path: Path, there: Iterable[str]) -> list[str]:
    """Choose the files with the model's weights among the names of those that are ``there``.

    They are those that the index in the folder ``path`` names, because repositories also hold adapters and copies.

    Raises:
        CheckpointCorrupt: the index cannot be used, one of its files is not there, or there are no weights.
    """
    there = sorted(there)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointCorrupt(f"{index} is not a safetensors index: {error!r}") from error
        if not names:
            raise CheckpointCorrupt(f"{index} names no files")
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or "\0" in name:
                raise CheckpointCorrupt(f"{index} names the file {name!r}, which is not in the model's folder")
        missing = [name for name in names if name not in there]
        if missing:
            raise CheckpointCorrupt(f"{path} lacks {', '.join(missing)}, which its index names; fetch the model again")
        return names
    names = fnmatch.filter(there, "model*.safetensors") or fnmatch.filter(there, "weights*.safetensors")
    if not names:
        raise CheckpointCorrupt(f"{path} has a config.json and no model*.safetensors")
    return names


def read_safetensors_header(file: Path) -> list[TensorInfo]:
    """Return the tensors that a safetensors file describes, each checked to lie inside the file, on bytes of its own.

    Raises:
        CheckpointCorrupt: the header is not one, or a tensor's bytes are not where or as many as it says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            end = header_end(file, stream.read(8), size)
            header = json.loads(stream.read(end - 8))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"the safetensors header of {file} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointCorrupt(f"the safetensors header of {file} is not a JSON object")
    header.pop("__metadata__", None)
    tensors = [_tensor(file, size, end, name, entry) for name, entry in header.items()]
    in_order = sorted((tensor for tensor in tensors if tensor.nbytes), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            raise CheckpointCorrupt(f"{file} is damaged: its tensors {before.name!r} and {after.name!r} overlap")
    return tensors


def header_end(file: Path, prefix: bytes, size: int) -> int:
    """Return where the header of a safetensors file ends, from the file's first 8 bytes and its size.

    Raises:
        CheckpointCorrupt: they are not those of a safetensors file.
    """
    if len(prefix) < 8:
        raise CheckpointCorrupt(f"{file} is {size} bytes long, too short for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise CheckpointCorrupt(
            f"{file} is not a safetensors file, or was cut short: its header claims {length} bytes "
            f"and the file has {size}"
        )
    return 8 + int(length)


def _tensor(file: Path, size: int, base: int, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"][:MAX_DIMENSIONS]), entry["data_offsets"]
        nbytes, split = divmod(math.prod(shape) * _BITS[dtype], 8)
        sound = isinstance(entry["shape"], list) and len(shape) == len(entry["shape"]) and not split
        sound = sound and all(type(side) is int and side >= 0 for side in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointCorrupt(
            f"{file} describes tensor {name!r} in a form that is not safetensors: {error!r}"
        ) from error
    if not sound or end - begin != nbytes or base + end > size:
        raise CheckpointCorrupt(
            f"{file} is damaged or was cut short: tensor {name!r} of {dtype}{list(shape)} should take {nbytes} bytes "
            f"at {begin}..{end}, and the file ends at {size - base}"
        )
    return TensorInfo(name=name, dtype=dtype, shape=shape, file=file, offset=base + begin, nbytes=nbytes)
