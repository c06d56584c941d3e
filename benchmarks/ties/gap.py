"""How near a tie was between the two tokens with which two texts that were the same so far go on."""

from __future__ import annotations

import math

import mlx.core as mx

from benchmarks.ties.texts import Wish
from runtime.inference.protocol import OpenSequence
from runtime.inference.sampling import TokenSampler
from runtime.inference.shard import Shard

FARTHEST = 64.0
"""Beyond that much log-probability no shift is looked for."""
HALVINGS = 30


def gap(whole: Shard, wish: Wish, before: tuple[int, ...], chosen: int, other: int) -> float:
    """Return by how much the log-probabilities of two tokens must come closer for the ``other`` to be chosen.

    For a greedy text that is the difference between the two. Where tokens are drawn, the likelier is not always the
    one that is chosen; so the sampler itself is asked, with the same seed, penalties and limits, and with the one
    token's logit lowered and the other's raised until it changes its mind.

    Args:
        whole: all layers of the model.
        wish: the text.
        before: tokens that both texts have before the two.
        chosen: the token of the text alone.
        other: that of the other text.

    Returns:
        0 where the other is chosen as it is, infinity where it is never chosen.
    """
    logits = whole.forward(mx.array([[*wish.prompt, *before]]), whole.new_cache())
    assert isinstance(logits, mx.array)  # noqa: S101 - the whole model ends with logits
    logits = logits[:, -1, :]

    def is_enough(shift: float) -> bool:
        moved = logits.at[:, other].add(shift / 2).at[:, chosen].add(-shift / 2)
        opened = OpenSequence(
            0, wish.prompt, len(wish.prompt), wish.sampling, wish.seed, None, eos=(), min_tokens=0, generated=before
        )
        token, _ = TokenSampler(opened, logits.shape[-1])(moved, len(wish.prompt) + len(before))
        return int(token.item()) == other

    if is_enough(0.0):
        return 0.0
    if not is_enough(FARTHEST):
        return math.inf
    too_little, enough = 0.0, FARTHEST
    for _ in range(HALVINGS):
        middle = (too_little + enough) / 2
        too_little, enough = (too_little, middle) if is_enough(middle) else (middle, enough)
    return enough
