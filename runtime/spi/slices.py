"""Which tensors a slice of a model loads, told by their names. It errs on the side of too many."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.spi.checkpoint import Checkpoint
    from runtime.spi.span import LayerSpan

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|wte|embeddings)\.")
_HEAD = re.compile(r"^(?:language_model\.)?(?:lm_head|output)\.")
_NOBODYS = re.compile(r"(?:^|\.)(?:visual|vision_\w+|audio_\w+|multi_modal_projector|mtp(?:_\w+)?)\.")
"""Parts for pictures and sound, and those that predict further tokens."""


def slice_tensors(checkpoint: Checkpoint, span: LayerSpan) -> frozenset[str]:
    """Return the names of the tensors that a stage with these layers may load.

    Layers are told by ``layers.<i>.`` in a name. The embedding is the first stage's, and the last one's too unless the
    configuration says that the head is another tensor, and there is one; the head is the last stage's. Parts for
    pictures, for sound and for predicting further tokens are nobody's. Whatever else stands outside the layers is
    everybody's.
    """
    tied = checkpoint.text_config.get("tie_word_embeddings") is not False or not any(
        _HEAD.match(name) for name in checkpoint.tensors
    )
    return frozenset(name for name in checkpoint.tensors if _holds(name, span, tied=tied))


def _holds(name: str, span: LayerSpan, *, tied: bool) -> bool:
    if _NOBODYS.search(name):
        return False
    layer = _LAYER.search(name)
    if layer is not None:
        return int(layer.group(1)) in span
    if _EMBEDDING.search(name):
        return span.is_first or (tied and span.is_last)
    return span.is_last or not _HEAD.match(name)
