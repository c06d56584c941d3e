"""Bytes of the weights that a slice holds, exact from the headers, and of what stands beside them while they load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, TensorInfo

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of each type that a model can compute in."""

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The same types in the headers."""
_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed|embed_in|embed_tokens|embeddings?|tok_embeddings|token_embeddings|word_embeddings|wte)\."
)
_INPUT_ONLY = re.compile(r"(?:^|\.)(?:embed_tokens_per_layer|ngram_embeddings|wpe)\.")
"""Embeddings of other things than tokens, which no head shares."""
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)(?:\.|$)|^(?:language_model\.)?(?:output|head)\.")
_EXPERT = re.compile(r"(?<=\.experts)\.\d+(?=\.)")
_NOT_LOADED = re.compile(
    # Made from the configuration; or scales that are multiplied into the weights; or heads that predict further
    # tokens; or parts for pictures and sound, which no text model loads.
    r"\.inv_freq$|\.(?:attn|attention)\.(?:bias|masked_bias)$|\.(?:weight_scale_inv|g_idx)$|(?:^|\.)mtp(?:_\w+)?\."
    r"|(?:^|\.)(?:vision_tower|vision_model|visual|multi_modal_projector|audio_tower)\."
)
_GROUP_SIZES = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}
"""Weights that share a scale, in the packings of MLX that have one size only."""
_PACKING = ("weight", "scales", "biases", "qweight", "qzeros")
_UNPACKED_BLOCK = 16 << 20
"""Bytes of the rows that are unpacked at once."""
_AWQ_BITS = 4


class Loaded(NamedTuple):
    """One module's tensors, before and after they are loaded."""

    resident: int
    """Bytes in memory afterwards."""
    staged: int
    """Bytes needed beside those while it is loaded."""


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the output head is the embedding."""
    # Without a head of its own a model uses the embedding, whatever the configuration says.
    tied = checkpoint.text_config.get("tie_word_embeddings") is True
    return tied or not any(_HEAD.search(name) for name in checkpoint.tensors)


def loading_peak(modules: Iterable[Loaded]) -> int:
    """Return the bytes that are in memory at most while modules are loaded one after the other."""
    before = peak = 0
    for module in modules:
        before += module.resident
        peak = max(peak, before + module.staged)
    return peak


def loaded_modules(checkpoint: Checkpoint, span: LayerSpan, options: LoadOptions) -> Iterator[Loaded]:
    """Yield the modules that a slice loads, in the order they are loaded: embedding, layers, the rest.

    A module's weight, scales and biases count as one, and so do all the experts of a layer that are stacked.

    Layers are told by ``layers.<i>.`` in a tensor's name. The embedding is on the first stage, and on the last one too
    where it is also the head; whatever else stands outside the layers (final norm, head) is on the last.

    Raises:
        CheckpointCorrupt: packed weights lack the scales, or the configuration the group size, to tell their size.
    """
    tied = is_tied(checkpoint)
    modules: dict[tuple[int, str], dict[str, list[TensorInfo]]] = {}
    for tensor in checkpoint.tensors.values():
        if _holds(tensor.name, span, tied=tied):
            module, _, kind = _EXPERT.sub("", tensor.name).rpartition(".")
            modules.setdefault((_turn(tensor.name), module), {}).setdefault(kind, []).append(tensor)
    for (_, module), tensors in sorted(modules.items(), key=lambda entry: entry[0][0]):
        yield _loaded(checkpoint, module, tensors, options)


def _loaded(checkpoint: Checkpoint, module: str, tensors: dict[str, list[TensorInfo]], options: LoadOptions) -> Loaded:
    width = WIDTH[options.dtype]
    scales = _size(tensors, "scales")
    if "qweight" in tensors and scales:
        return _repacked(tensors, scales, options)
    packed = tensors.get("weight", ())
    others = sum(_resident(tensor, width) for kind, each in tensors.items() if kind not in _PACKING for tensor in each)
    if options.dequantize and scales and packed and packed[0].dtype == "U32":
        expanded = scales * _group_size(checkpoint, module) * width
        stored = sum(tensor.nbytes for kind, each in tensors.items() if kind in _PACKING for tensor in each)
        return Loaded(expanded + others, stored + min(expanded, _UNPACKED_BLOCK))
    resident = sum(_resident(tensor, width) for each in tensors.values() for tensor in each)
    # Experts are put into their stack one at a time; another tensor is there twice while it is converted.
    stored = _NAMES[options.dtype]
    return Loaded(resident, sum(max(_beside(tensor, stored) for tensor in each) for each in tensors.values()))


def _repacked(tensors: dict[str, list[TensorInfo]], scales: int, options: LoadOptions) -> Loaded:
    """Weights packed by AutoAWQ: they become MLX's, with a bias for each scale, by way of one number a weight."""
    width = WIDTH[options.dtype]
    words = _size(tensors, "qweight")
    weights = words * 32 // _AWQ_BITS
    bias = sum(_resident(tensor, width) for kind, each in tensors.items() if kind not in _PACKING for tensor in each)
    packed = words * 4 + 2 * scales * width
    resident = weights * width if options.dequantize else packed
    return Loaded(resident + bias, 3 * weights * 4 + (packed if options.dequantize else 0))


def _beside(tensor: TensorInfo, dtype: str) -> int:
    """Bytes of a tensor as it is stored, where that is not as it is kept: it is there twice for a while."""
    stacked = len(tensor.shape) > 2 and "experts" in tensor.name
    return tensor.nbytes if stacked or (tensor.dtype in _FLOATING and tensor.dtype != dtype) else 0


def _turn(name: str) -> int:
    """Where a tensor's module comes in the order of loading."""
    layer = _LAYER.search(name)
    if layer:
        return int(layer.group(1))
    return -1 if _EMBEDDING.search(name) or _INPUT_ONLY.search(name) else 1 << 30


def _holds(name: str, span: LayerSpan, *, tied: bool) -> bool:
    if _NOT_LOADED.search(name):
        return False
    layer = _LAYER.search(name)
    if layer:
        return int(layer.group(1)) in span
    if _INPUT_ONLY.search(name):
        return span.is_first
    if _EMBEDDING.search(name):
        return span.is_first or (tied and span.is_last)
    if _HEAD.search(name):
        return span.is_last and not tied
    return span.is_last


def _size(tensors: dict[str, list[TensorInfo]], kind: str) -> int:
    return sum(tensor.size for tensor in tensors.get(kind, ()))


def _resident(tensor: TensorInfo, width: int) -> int:
    return tensor.size * width if tensor.dtype in _FLOATING else tensor.nbytes


def _group_size(checkpoint: Checkpoint, module: str) -> int:
    quantization = checkpoint.quantization or {}
    own = quantization.get(module)
    section = own if isinstance(own, dict) else quantization
    default = _GROUP_SIZES.get(str(section.get("mode", quantization.get("mode"))))
    size = section.get("group_size", quantization.get("group_size", default))
    if not isinstance(size, int) or size <= 0:
        raise CheckpointCorrupt(
            f"{checkpoint.path / 'config.json'} gives no quantization group_size for the packed weights of {module}"
        )
    return size
