"""From GGUF's metadata and tensor names to ``config.json`` and Hugging Face's names.

Everything that a file means is either converted or refused: a tensor or a setting that is not understood would give a
model that runs and is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.architectures import ARCHITECTURES
from runtime_gguf.blueprint import Blueprint, Part
from runtime_gguf.metadata import Metadata
from runtime_gguf.reader import GgufHeader, GgufTensor
from runtime_gguf.rope import FACTOR_TENSORS, Factors

_WITHOUT_EFFECT = (
    "vocab_size",  # counted
    "tensor_data_layout",  # says by which converter the rows of q and k were ordered
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # where nothing is scaled
)


class Move(NamedTuple):
    """One tensor of the GGUF file and where it goes."""

    tensor: GgufTensor
    name: str
    """Hugging Face's name."""
    shape: tuple[int, ...]
    """Rows first."""
    heads: int | None
    """Number of heads whose rows the llama.cpp converter interleaved, for q and k."""
    shift: float
    """What the converter added to every element."""
    packs: bool
    """Whether the module can hold packed weights."""


class Architecture(NamedTuple):
    """The model, apart from its weights and its tokenizer."""

    config: dict[str, Any]
    moves: tuple[Move, ...]


def read_architecture(header: GgufHeader, factors: Factors) -> Architecture:
    """Describe the model.

    Args:
        header: what the file says.
        factors: the values of those tensors of :data:`~runtime_gguf.rope.FACTOR_TENSORS` that the file has.

    Raises:
        ModelUnsupported: the architecture, or a part of it, is not converted here.
        CheckpointCorrupt: a key or a tensor is missing, or does not have its shape.
    """
    file = Metadata(header)
    describe = ARCHITECTURES.get(file.architecture)
    if describe is None:
        near = difflib.get_close_matches(file.architecture, ARCHITECTURES, n=3) or sorted(ARCHITECTURES)
        raise ModelUnsupported(
            f"{header.path} is a model of architecture {file.architecture[:40]!r}, which is not converted; there are "
            f"{', '.join(near)}. Use the model's Hugging Face or MLX folder instead"
        )
    blueprint = describe(file, factors)
    _check_settings(file)
    parts = _check_tensors(header, blueprint)
    moves = (Move(header.tensors[gguf], *part[1:]) for gguf, part in parts.items())
    return Architecture(blueprint.config, tuple(moves))


def _check_settings(file: Metadata) -> None:
    file.ignore(*_WITHOUT_EFFECT)
    if not file.flag("attention.causal", True):
        raise ModelUnsupported(f"{file.path} sees what comes after a token, too; only causal models run")
    if f"{file.architecture}.rope.freq_base_swa" in file.unread():
        base = file.real("rope.freq_base", 10000.0)
        file.require("rope.freq_base_swa", base, base)
    unread = file.unread()
    if unread:
        key, value = next(iter(unread.items()))
        raise ModelUnsupported(
            f"{file.path} sets {key} = {str(value)[:40]}, which has no meaning in a {file.architecture} here; "
            "converting it would leave that out"
        )


def _spelt_out(blueprint: Blueprint) -> Iterator[tuple[str, Part]]:
    """Yield every tensor's full GGUF name, with its full Hugging Face name."""
    for part in blueprint.outside:
        yield part.gguf, part
    for layer in range(int(blueprint.config["num_hidden_layers"])):
        for part in blueprint.parts_of(layer):
            yield f"blk.{layer}.{part.gguf}", part._replace(name=f"model.layers.{layer}.{part.name}")


def _check_tensors(header: GgufHeader, blueprint: Blueprint) -> dict[str, Part]:
    """Return the parts by GGUF's full names, all of which the file has, and no others."""
    parts: dict[str, Part] = {}
    for name, part in _spelt_out(blueprint):
        # The first that is missing ends it: a claim of a million layers is never spelt out.
        found = header.tensors.get(name)
        if found is None:
            raise CheckpointCorrupt(f"{header.path} lacks the tensor {name}; it may be cut short")
        if _without_ones(found.shape) != _without_ones(part.shape):
            raise CheckpointCorrupt(
                f"tensor {name} of {header.path} has shape {found.shape}, and should have {part.shape}"
            )
        parts[name] = part
    unused = tuple(f"blk.{layer}." for layer in blueprint.unused)
    surplus = header.tensors.keys() - parts.keys() - set(FACTOR_TENSORS)
    unknown = sorted(name for name in surplus if not name.startswith(unused))
    if unknown:
        raise ModelUnsupported(
            f"{header.path} has {len(unknown)} tensors that its architecture does not have here, such as {unknown[0]}; "
            "converting it would drop a part of the model"
        )
    return parts


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
