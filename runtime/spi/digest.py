"""What tells models apart: a digest that takes some bytes of the weights, and not all of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import CheckpointCorrupt

if TYPE_CHECKING:
    from runtime.spi.checkpoint import TensorInfo

TOKENIZER_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
SAMPLED_BYTES = 256
"""Of each tensor that is sampled."""
SAMPLED_TENSORS = 256
"""A node that holds a slice only fetches these bytes of the rest, so they must be few."""

_NUMBER = re.compile(r"\d+")


def sampled(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Choose the tensors to sample: all, or :data:`SAMPLED_TENSORS` of them, as many of each kind as of every other.

    A kind is a name without its numbers. So a change to one projection of all layers is seen, and one to all of a few
    layers very probably.
    """
    ranked = []
    count: dict[str, int] = {}
    for tensor in sorted((tensor for tensor in tensors if tensor.nbytes), key=lambda tensor: _shuffled(tensor.name)):
        kind = _NUMBER.sub("*", tensor.name)
        count[kind] = count.get(kind, 0) + 1
        ranked.append((count[kind], kind, tensor))
    ranked.sort(key=lambda entry: entry[:2])
    return [tensor for _, _, tensor in ranked[:SAMPLED_TENSORS]]


def sample_range(tensor: TensorInfo) -> tuple[int, int]:
    """Return where in its file the bytes are that the digest takes of a tensor: in its middle."""
    start = tensor.offset + max(0, tensor.nbytes - SAMPLED_BYTES) // 2
    return start, start + min(SAMPLED_BYTES, tensor.nbytes)


def digest(path: Path, config: dict[str, Any], tensors: Iterable[TensorInfo]) -> str:
    """Return the SHA-256 over configuration, tokenizer, tensor headers, and samples of the tensors.

    Raises:
        CheckpointCorrupt: a file cannot be read any more.
    """
    state = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors = sorted(tensors, key=lambda tensor: (tensor.file.name, tensor.offset, tensor.name))
    chosen: dict[Path, list[TensorInfo]] = {}
    for tensor in sampled(tensors):
        chosen.setdefault(tensor.file, []).append(tensor)
    try:
        for name in TOKENIZER_FILES:
            file = path / name
            if file.is_file():
                state.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
        for tensor in tensors:
            place = f"{tensor.file.name}:{tensor.offset}"
            state.update(f"{tensor.name}:{tensor.dtype}:{tensor.shape}:{place}\n".encode())
        for file in sorted(chosen, key=lambda file: file.name):
            with file.open("rb") as stream:
                for tensor in sorted(chosen[file], key=lambda tensor: (tensor.offset, tensor.name)):
                    start, stop = sample_range(tensor)
                    stream.seek(start)
                    state.update(stream.read(stop - start))
    except OSError as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error}") from error
    return state.hexdigest()


def _shuffled(name: str) -> bytes:
    """Order names in a way that has nothing to do with their numbers."""
    return hashlib.sha256(name.encode()).digest()
