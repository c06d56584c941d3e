"""A scheduler and stages without actors: the same steps, in an order that a test chooses."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from runtime.inference.capacity import Capacity
from runtime.inference.loading import load_shard
from runtime.inference.microbatch import StageSequence
from runtime.inference.protocol import Hidden, OpenSequence, Prefilled, Sampled, Step
from runtime.inference.scheduler import Scheduler
from runtime.inference.sequence import StageSequences
from runtime.inference.shard import Shard
from runtime.spi import LayerSpan, LoadOptions, Sampling, read_checkpoint
from runtime_dense.family import DenseFamily

GREEDY = Sampling(temperature=0.0)


def shards(folder: Path, cuts: tuple[int, ...]) -> list[Shard]:
    """Load a dense model in float32: a slice from each of ``cuts`` to the next."""
    checkpoint = read_checkpoint(folder)
    options = LoadOptions("float32", dequantize=True)
    return [
        load_shard(
            {"dense": DenseFamily()},
            checkpoint,
            LayerSpan(start, stop, checkpoint.num_layers),
            options,
            lambda done, total: None,
        )
        for start, stop in pairwise(cuts)
    ]


class LocalStage:
    """A stage, and the steps that wait for it."""

    def __init__(self, shard: Shard) -> None:
        self.open: dict[int, StageSequence] = {}
        self.work = StageSequences(shard, self.open)
        self.queue: deque[Step | Hidden] = deque()


class LocalPipeline:
    """Runs sequences to their ends, one stage's step at a time."""

    def __init__(self, shards: Sequence[Shard], capacity: Capacity) -> None:
        self.scheduler = Scheduler(capacity)
        self.stages = [LocalStage(shard) for shard in shards]
        self.answers: deque[Sampled | Prefilled] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.widest = 0
        """Most rows of one step."""
        self.taken_in = 0
        """Prompt tokens in all steps."""
        self._ids = itertools.count(1)
        self._now = 0.0
        self._opened: dict[int, OpenSequence] = {}

    def add(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        eos: tuple[int, ...] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        generated: tuple[int, ...] = (),
    ) -> int:
        """Queue a sequence; ``generated`` is what of it was sampled elsewhere, and ``max_tokens`` counts that too."""
        sequence = next(self._ids)
        self._opened[sequence] = OpenSequence(
            sequence, prompt, len(prompt), sampling, seed, logprobs, eos, min_tokens, generated
        )
        self.tokens[sequence] = [*generated]
        self.scheduler.add(sequence, prompt, max_tokens, eos, generated)
        self.go_on()
        return sequence

    def remove(self, sequence: int) -> None:
        """Close a sequence, as when a client goes away."""
        self.scheduler.remove(sequence)
        self.go_on()

    def go_on(self) -> None:
        self._now += 0.01
        for sequence in self.scheduler.closed():
            for stage in self.stages:
                stage.open.pop(sequence, None)
        for sequence in self.scheduler.admit():
            for stage in self.stages:
                stage.open[sequence] = StageSequence(self._opened[sequence])
            self.scheduler.opened(sequence)
        self.stages[0].queue += self.scheduler.issue()

    @property
    def busy(self) -> list[int]:
        """Stages with something to do; the driver, with answers to take, comes after the last."""
        found = [index for index, stage in enumerate(self.stages) if stage.queue]
        return [*found, len(self.stages)] if self.answers else found

    def advance(self, place: int) -> None:
        if place == len(self.stages):
            self._answer(self.answers.popleft())
            return
        stage = self.stages[place]
        step = stage.queue.popleft()
        self.widest = max(self.widest, len(step.rows))
        if place == 0 and step.batch is None and isinstance(step, Step):
            self.taken_in += sum(len(row.tokens or ()) for row in step.rows)
        computation = stage.work.step(step)
        computation.launch()
        result = computation.collect()
        if isinstance(result, Hidden):
            self.stages[place + 1].queue.append(result)
        else:
            self.answers.append(result)

    def _answer(self, answer: Sampled | Prefilled) -> None:
        self.scheduler.done(answer.number, self._now)
        for chosen in answer.tokens if isinstance(answer, Sampled) else ():
            progress = self.scheduler.sampled(chosen.sequence, chosen.position, chosen.token)
            if progress is None:
                continue
            assert progress.index == len(self.tokens[chosen.sequence])
            self.tokens[chosen.sequence].append(chosen.token)
        self.go_on()

    def run(self, choose: Callable[[list[int]], int] = lambda busy: busy[-1], until: int = 10**9) -> None:
        """Go on until nothing is left to do, or for so many steps."""
        for _ in range(until):
            busy = self.busy
            if not busy:
                return
            self.advance(choose(busy))


def all_tokens(pipeline: LocalPipeline, sequences: Iterable[int]) -> list[list[int]]:
    return [pipeline.tokens[sequence] for sequence in sequences]
