"""Counts the texts that are others than alone, and tells near ties from wrong ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from benchmarks.ties.gap import gap
from benchmarks.ties.texts import Wish, alone, batched, interrupted
from runtime.inference.shard import Shard

WRONG = 1e-3
"""Log-probability: rounding does not bridge more of it in float32, so a text that differs by more is wrong."""


class Row(msgspec.Struct, frozen=True):
    """Texts of one kind that were generated in one way."""

    how: str
    stages: int
    kind: str
    """``greedy`` or ``seeded``."""
    texts: int
    tokens: int
    """That were compared: those of a text up to its first difference. After it, it is another text."""
    differ: int
    """Texts that are not as alone."""
    wrong: int
    """Of those, the ones that no near tie explains."""
    gaps: tuple[float, ...]
    """How near each tie was, by :func:`~benchmarks.ties.gap.gap`."""
    widest: int = 1
    """Most sequences in one forward pass."""

    def line(self) -> str:
        """The row in Markdown."""
        stages = f"{self.stages} stage{'s' if self.stages > 1 else ''}"
        farthest = f"{max(self.gaps):.0e}" if self.gaps else ""
        return (
            f"| {self.how}, {stages} | {self.kind} | {self.differ} of {self.texts} | {self.tokens} | {farthest} |"
            f" {self.wrong} |"
        )


HEADING = "| How | Kind | Differ | Tokens | Largest gap | Wrong |\n|---|---|---|---|---|---|"


def tally(
    how: str,
    whole: Shard,
    stages: int,
    wished: Sequence[Wish],
    undisturbed: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    before: Sequence[int] | None = None,
    widest: int = 1,
) -> Iterator[Row]:
    """Compare texts with those alone, and yield a row for the greedy ones and one for the seeded.

    Args:
        how: the way in which they were generated.
        whole: all layers of the model, to see by how much they differ.
        stages: over which they were generated.
        wished: what was wanted.
        undisturbed: the texts alone.
        texts: the texts.
        before: tokens of each that were given, and are not counted.
        widest: most sequences in one forward pass.
    """
    for kind, is_greedy in (("greedy", True), ("seeded", False)):
        count = tokens = 0
        gaps = []
        for index, wish in enumerate(wished):
            if wish.is_greedy != is_greedy:
                continue
            expected, found = undisturbed[index], texts[index]
            at = first_difference(expected, found)
            count += 1
            tokens += (len(expected) if at is None else at + 1) - (before[index] if before else 0)
            if at is not None:
                gaps.append(gap(whole, wish, tuple(expected[:at]), expected[at], found[at]))
        wrong = sum(each > WRONG for each in gaps)
        yield Row(how, stages, kind, count, tokens, len(gaps), wrong, tuple(gaps), widest)


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return where two texts of one length differ first, None if they are the same.

    Raises:
        ValueError: one is longer.
    """
    pairs = zip(expected, found, strict=True)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), None)


def compare(pipelines: Mapping[int, Sequence[Shard]], wished: Sequence[Wish], tokens: int, seed: int) -> Iterator[Row]:
    """Generate texts alone and otherwise, and yield what differs as it is known.

    Args:
        pipelines: the model as one stage, under 1, and as so many others as wanted, by their number.
        wished: the texts.
        tokens: of each.
        seed: of the order of events.
    """
    order = random.Random(seed)  # noqa: S311 - an order of events, not a secret
    [whole] = pipelines[1]
    undisturbed = alone(pipelines[1], wished, tokens)
    for stages, shards in pipelines.items():
        if stages > 1:
            yield from tally("alone", whole, stages, wished, undisturbed, alone(shards, wished, tokens))
        texts, widest = batched(shards, wished, tokens, order)
        yield from tally("in batches", whole, stages, wished, undisturbed, texts, widest=widest)
        texts, before = interrupted(shards, wished, undisturbed, order)
        yield from tally("interrupted", whole, stages, wished, undisturbed, texts, before)
