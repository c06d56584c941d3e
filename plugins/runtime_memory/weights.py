"""Bytes of the weights that a slice holds, exact from the headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, TensorInfo

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of each type that a model can compute in."""

_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|wte|embeddings)\.")
_HEAD = re.compile(r"^(?:language_model\.)?(?:lm_head|output)\.")
_NOT_LOADED = re.compile(
    # Recomputed from the configuration; or parts for pictures and sound, which no text model loads.
    r"rotary_emb\.inv_freq$|(?:^|\.)(?:vision_tower|vision_model|visual|multi_modal_projector|audio_tower)\."
)


class Loaded(NamedTuple):
    """One module's tensors, before and after they are loaded."""

    resident: int
    """Bytes in memory afterwards."""
    staged: int
    """Bytes needed beside those while it is loaded: the tensors as stored, and the unpacked values where packed
    weights are expanded (MLX's CPU back end makes a copy on the way; measured with 0.32)."""


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the output head is the embedding."""
    tied = checkpoint.text_config.get("tie_word_embeddings")
    if isinstance(tied, bool):
        return tied
    return not any(_HEAD.match(name) for name in checkpoint.tensors)


def loaded_modules(checkpoint: Checkpoint, span: LayerSpan, options: LoadOptions) -> Iterator[Loaded]:
    """Yield the modules that a slice loads; a module's weight, scales and biases count as one.

    Layers are told by ``layers.<i>.`` in a tensor's name. The embedding is on the first stage, and on the last one too
    where it is also the head; whatever else stands outside the layers (final norm, head) is on the last.

    Raises:
        CheckpointCorrupt: packed weights lack the scales, or the configuration the group size, to tell their size.
    """
    tied = is_tied(checkpoint)
    width = WIDTH[options.dtype]
    modules: dict[str, dict[str, TensorInfo]] = {}
    for tensor in checkpoint.tensors.values():
        if _holds(tensor.name, span, tied=tied):
            module, _, kind = tensor.name.rpartition(".")
            modules.setdefault(module, {})[kind] = tensor
    for module, tensors in modules.items():
        stored = sum(tensor.nbytes for tensor in tensors.values())
        packed = tensors.get("weight")
        scales = tensors.get("scales")
        if packed is None or scales is None or packed.dtype != "U32" or not options.dequantize:
            yield Loaded(sum(_resident(tensor, width) for tensor in tensors.values()), stored)
        else:
            expanded = scales.size * _group_size(checkpoint, module) * width
            others = sum(_resident(tensor, width) for kind, tensor in tensors.items() if kind not in _PACKING)
            yield Loaded(expanded + others, stored + expanded)


_PACKING = ("weight", "scales", "biases")


def _holds(name: str, span: LayerSpan, *, tied: bool) -> bool:
    if _NOT_LOADED.search(name):
        return False
    layer = _LAYER.search(name)
    if layer:
        return int(layer.group(1)) in span
    if _EMBEDDING.search(name):
        return span.is_first or (tied and span.is_last)
    if _HEAD.match(name):
        return span.is_last and not tied
    return span.is_last


def _resident(tensor: TensorInfo, width: int) -> int:
    return tensor.size * width if tensor.dtype in _FLOATING else tensor.nbytes


def _group_size(checkpoint: Checkpoint, module: str) -> int:
    quantization = checkpoint.quantization or {}
    own = quantization.get(module)
    section = own if isinstance(own, dict) else quantization
    size = section.get("group_size", quantization.get("group_size"))
    if not isinstance(size, int) or size <= 0:
        raise CheckpointCorrupt(
            f"{checkpoint.path / 'config.json'} gives no quantization group_size for the packed weights of {module}"
        )
    return size
