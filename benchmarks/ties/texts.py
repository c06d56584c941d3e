"""Generates the same texts alone, among others, and in two parts, over stages without actors. Prepare MLX first."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec

from runtime.inference.capacity import Capacity
from runtime.inference.shard import Shard
from runtime.spi import Sampling
from tests.inference.pipeline import GREEDY, LocalPipeline

FEWEST, MOST = 2, 16
"""Sequences that run at once; ``models.batch`` is the most by default."""
CHUNK = 32
"""Prompt tokens a step. Fewer than the default, so that short prompts are taken in by several, too."""
CONTEXT = 1024
BETWEEN = 24
"""Most steps until the next text joins."""
DRAWN = Sampling(temperature=0.8, top_p=0.95, frequency_penalty=0.2)
OPENINGS = (
    "Once upon a time there were {} foxes",
    "The capital of France is a city of {} bridges",
    "To bake bread for {} people, take",
    "def mean(values):\n    return",
    "In the year {} the first ship arrived, and",
    "Question: what is {} times seven?\nAnswer:",
    "Dear Sir, we have not heard from you for {} weeks",
    "The three laws of motion are",
)


class Wish(msgspec.Struct, frozen=True):
    """A text that is wanted."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int

    @property
    def is_greedy(self) -> bool:
        return self.sampling == GREEDY


def openings(count: int, order: random.Random) -> list[str]:
    """Draw prompts: one to four sentences each."""
    return [
        ". ".join(opening.format(number) for opening in order.sample(OPENINGS, order.randint(1, 4)))
        for number in range(count)
    ]


def wishes(prompts: Sequence[Sequence[int]]) -> list[Wish]:
    """Want a greedy text and a sampled one in turn."""
    return [Wish(tuple(prompt), (GREEDY, DRAWN)[number % 2], number) for number, prompt in enumerate(prompts)]


def alone(shards: Sequence[Shard], wished: Sequence[Wish], tokens: int) -> list[list[int]]:
    """Generate each text of ``tokens`` with nothing beside it."""
    return [_one(shards, wish, tokens, ()) for wish in wished]


def interrupted(
    shards: Sequence[Shard], wished: Sequence[Wish], undisturbed: Sequence[Sequence[int]], order: random.Random
) -> tuple[list[list[int]], list[int]]:
    """Break each text off at a token that is drawn, and go on from the record of it, as after a loss.

    Returns:
        The texts, and how many tokens of each were generated before.
    """
    before = [order.randrange(1, len(text)) for text in undisturbed]
    return [
        _one(shards, wish, len(text), tuple(text[:done]))
        for wish, text, done in zip(wished, undisturbed, before, strict=True)
    ], before


def batched(
    shards: Sequence[Shard], wished: Sequence[Wish], tokens: int, order: random.Random
) -> tuple[list[list[int]], int]:
    """Generate the texts in batches of two to sixteen. Others come and go beside them, and stages work in any order.

    Returns:
        The texts, and the most rows of one step.
    """
    texts: list[list[int]] = []
    widest = 0
    for group, at_once in _groups(wished, order):
        pipeline = LocalPipeline(shards, _capacity(len(shards), at_once))
        sequences = []
        companions: list[int] = []
        waiting = list(group)
        while waiting or pipeline.busy:
            if waiting:
                wish = waiting.pop(0)
                sequences.append(pipeline.add(wish.prompt, tokens, sampling=wish.sampling, seed=wish.seed))
                if order.random() < 0.5:
                    other = order.choice(wished)
                    companions.append(pipeline.add(other.prompt, tokens, sampling=other.sampling))
            elif companions:
                pipeline.remove(companions.pop(order.randrange(len(companions))))
            pipeline.run(order.choice, until=order.randrange(BETWEEN))
        texts += [pipeline.tokens[sequence] for sequence in sequences]
        widest = max(widest, pipeline.widest)
    return texts, widest


def _groups(wished: Sequence[Wish], order: random.Random) -> Iterator[tuple[Sequence[Wish], int]]:
    """Yield texts that run together, and how many do at once."""
    start = 0
    while start < len(wished):
        at_once = order.randint(FEWEST, MOST)
        yield wished[start : start + at_once], at_once
        start += at_once


def _one(shards: Sequence[Shard], wish: Wish, tokens: int, generated: tuple[int, ...]) -> list[int]:
    pipeline = LocalPipeline(shards, _capacity(len(shards), 1))
    sequence = pipeline.add(wish.prompt, tokens, sampling=wish.sampling, seed=wish.seed, generated=generated)
    pipeline.run()
    return pipeline.tokens[sequence]


def _capacity(stages: int, at_once: int) -> Capacity:
    return Capacity(
        stages=stages,
        sequences=at_once,
        waiting=2 * MOST,
        chunk=CHUNK,
        context=CONTEXT,
        positions=4 * MOST * CONTEXT,
    )
