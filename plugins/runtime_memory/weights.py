"""Bytes of the weights that a slice holds, exact from the headers, and of what stands beside them while they load."""

from __future__ import annotations

import functools
import re
from typing import Literal, NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, TensorInfo
from runtime_memory.sizes import number

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of each type that a model can compute in."""

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The same types in the headers."""
_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed|embed_in|embed_tokens|embeddings?|tok_embeddings|token_embeddings|word_embeddings|wte)\."
)
_INPUT_ONLY = re.compile(
    r"(?:^|\.)(?:embed_tokens_per_layer|ngram_embeddings|wpe|altup_projections|per_layer_(?:model_)?projection\w*)\."
)
"""What else makes the first hidden state, and no head shares."""
_REUSING_LAYER = re.compile(r"(?:^|\.)kv_reuse_layers\.(\d{1,6})\.")
"""The last layers of afm7, which are numbered from 0 again."""
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)(?:\.|$)|^(?:language_model\.)?(?:output|head)\.")
_EXPERT = re.compile(r"(?<=\.experts)\.\d{1,6}(?=\.)")
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


class Group(NamedTuple):
    """Modules that are loaded one after the other."""

    resident: int = 0
    """Bytes in memory afterwards."""
    peak: int = 0
    """Bytes in memory at most, meanwhile."""

    def then(self, other: Group) -> Group:
        """Return this group and, after it, another."""
        return Group(self.resident + other.resident, max(self.peak, self.resident + other.peak))


class Weights:
    """The weights of a model, sorted once, so that what any slice of it needs is quickly said.

    Layers are told by ``layers.<i>.`` in a tensor's name. The embedding is on the first stage, and on the last one too
    where it is also the head; whatever else stands outside the layers (final norm, head) is on the last. A module's
    weight, scales and biases count as one, and so do all the experts of a layer that are stacked.
    """

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        """Sort a model's tensors.

        Raises:
            CheckpointCorrupt: the configuration lacks the group size of packed weights, to tell their size.
        """
        self._tied = is_tied(checkpoint)
        # A layer that uses the caches of others may be numbered apart; it comes after those that have their own.
        own_caches = checkpoint.num_layers - number(checkpoint.text_config, "num_kv_reuse_layers", default=0)
        modules: dict[tuple[_Place, str], dict[str, list[TensorInfo]]] = {}
        for tensor in checkpoint.tensors.values():
            place = _place(tensor.name, own_caches)
            if place is not None:
                module, _, kind = _EXPERT.sub("", tensor.name).rpartition(".")
                modules.setdefault((place, module), {}).setdefault(kind, []).append(tensor)
        self._groups: dict[_Place, Group] = {}
        for (place, module), tensors in modules.items():
            resident, staged = _loaded(checkpoint, module, tensors, options)
            group = self._groups.get(place, Group())
            self._groups[place] = group.then(Group(resident, resident + staged))

    def of(self, span: LayerSpan) -> Group:
        """Return what a slice loads, in the order it is loaded: what is before the layers, they, and the rest."""
        places: list[_Place] = []
        if span.is_first:
            places += ["inputs", "embedding"]
        elif span.is_last and self._tied:
            places.append("embedding")
        places += range(span.start, span.stop)
        if span.is_last:
            places += ["rest"] if self._tied else ["rest", "head"]
        return functools.reduce(Group.then, (self._groups[place] for place in places if place in self._groups), Group())


_Place = int | Literal["inputs", "embedding", "rest", "head"]
"""A layer, or where else a tensor is."""


def _place(name: str, own_caches: int) -> _Place | None:
    """Return where a tensor is, None if it is not loaded."""
    if _NOT_LOADED.search(name):
        return None
    if layer := _LAYER.search(name):
        return int(layer.group(1))
    if layer := _REUSING_LAYER.search(name):
        return own_caches + int(layer.group(1))
    if _INPUT_ONLY.search(name):
        return "inputs"
    if _EMBEDDING.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) else "rest"


def _loaded(checkpoint: Checkpoint, module: str, tensors: dict[str, list[TensorInfo]], options: LoadOptions) -> Loaded:
    """Return what a module's tensors, by the last part of their names, take."""
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
    kept = _NAMES[options.dtype]
    return Loaded(resident, sum(max(_beside(tensor, kept) for tensor in each) for each in tensors.values()))


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
