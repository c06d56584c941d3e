"""Which tensors a slice of a model loads, told by their names. It errs on the side of too many."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.spi.checkpoint import Checkpoint
    from runtime.spi.span import LayerSpan

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed|embed_in|embed_tokens|embedding|embeddings|token_embeddings|tok_embeddings|word_embeddings|wte)\."
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)(?:\.|$)|^(?:language_model\.)?output\.")
_INPUT = re.compile(
    r"(?:^|\.)(?:wpe|embed_tokens_per_layer|per_layer_model_projection|altup_projections|ngram_embeddings)\."
)
"""What else makes the first hidden state of tokens: positions, Gemma 3n's and 4's inputs of each layer, n-grams."""
_OUTPUT = re.compile(r"(?:^|\.)altup_unembed_projections\.")
"""What else makes logits of the last one."""
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
        _HEAD.search(name) for name in checkpoint.tensors
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
    if _INPUT.search(name):
        return span.is_first
    return span.is_last or not (_HEAD.search(name) or _OUTPUT.search(name))
