"""Whatever order results come in, sequences take their steps in order and come to an end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.inference.protocol import Step
from runtime.inference.scheduler import Scheduler

EOS = 7


@dataclass
class Run:
    """One sequence, as a pipeline would see it."""

    prompt: tuple[int, ...]
    max_tokens: int
    queue: deque[Step] = field(default_factory=deque)
    """Steps in the pipeline: they come out in the order they went in."""
    position: int = 0
    samples: int = 0
    seen: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None


class Pipeline:
    """Drives a scheduler and checks every step that it issues."""

    def __init__(self, stages: int, limit: int, waiting: int, chunk: int) -> None:
        self.scheduler = Scheduler(stages=stages, limit=limit, waiting=waiting, chunk=chunk)
        self.stages, self.limit, self.chunk = stages, limit, chunk
        self.runs: dict[int, Run] = {}
        self.started: list[int] = []
        self.ended: set[int] = set()

    def add(self, sequence: int, prompt: tuple[int, ...], max_tokens: int) -> None:
        self.runs[sequence] = Run(prompt, max_tokens)
        self.scheduler.add(sequence, prompt, max_tokens, (EOS,))
        self.admit()

    def admit(self) -> None:
        for sequence in self.scheduler.admit():
            self.started.append(sequence)
            self.issue(sequence, self.scheduler.steps(sequence))
        assert len([s for s in self.started if s not in self.ended]) <= self.limit

    def issue(self, sequence: int, steps: list[Step]) -> None:
        run = self.runs[sequence]
        for step in steps:
            assert step.sequence == sequence
            assert step.position == run.position, "positions leave no gap"
            length = 1 if step.tokens is None else len(step.tokens)
            assert 1 <= length <= self.chunk
            last = len(run.prompt) - 1
            if run.position < last:
                assert step.tokens == run.prompt[run.position : run.position + length]
                assert run.position + length <= last, "the last token of a prompt has a step of its own"
                assert not step.sample
            else:
                assert step.sample
                assert length == 1
                run.samples += 1
                assert run.samples <= run.max_tokens
                if run.position == last:
                    assert step.tokens == run.prompt[last:]
                elif self.stages == 1:
                    assert step.tokens is None, "with one stage the next token need not be known"
                    assert run.samples - len(run.tokens) <= 2
                else:
                    assert step.tokens == (run.tokens[-1],)
                    assert run.samples - len(run.tokens) == 1
            run.position += length
            run.queue.append(step)
            assert len(run.queue) <= self.stages + 1

    def come_out(self, sequence: int, token: int) -> None:
        """Let the oldest step of a sequence out of the pipeline."""
        run = self.runs[sequence]
        step = run.queue.popleft()
        if not step.sample:
            self.scheduler.prefilled(sequence)
            self.issue(sequence, self.scheduler.steps(sequence))
            return
        if sequence not in self.ended:
            run.tokens.append(token)
        progress, steps = self.scheduler.sampled(sequence, token)
        if sequence in self.ended:
            assert (progress, steps) == (None, [])
            return
        assert progress is not None
        assert progress.index == len(run.tokens) - 1
        expected = "stop" if token == EOS else "length" if len(run.tokens) == run.max_tokens else None
        assert progress.reason == expected
        self.issue(sequence, steps)
        if progress.reason is not None:
            assert steps == []
            run.reason = progress.reason
            self.remove(sequence)

    def remove(self, sequence: int) -> None:
        assert self.scheduler.remove(sequence) is (sequence in self.started)
        self.ended.add(sequence)
        assert sequence not in self.scheduler.sequences
        self.admit()


@given(
    data=st.data(),
    stages=st.integers(1, 4),
    limit=st.integers(1, 3),
    chunk=st.integers(1, 5),
    sizes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 6)), min_size=1, max_size=6),
)
def test_any_interleaving_gives_every_sequence_its_steps_in_order_and_an_end(
    data: st.DataObject, stages: int, limit: int, chunk: int, sizes: list[tuple[int, int]]
) -> None:
    pipeline = Pipeline(stages, limit, 10, chunk)
    for sequence, (length, max_tokens) in enumerate(sizes):
        pipeline.add(sequence, tuple(range(100, 100 + length)), max_tokens)
    cancelled = set()
    while busy := [sequence for sequence, run in pipeline.runs.items() if run.queue]:
        sequence = data.draw(st.sampled_from(busy))
        alive = pipeline.scheduler.sequences
        if alive and data.draw(st.integers(0, 15)) == 0:
            victim = data.draw(st.sampled_from(alive))
            cancelled.add(victim)
            pipeline.remove(victim)
        pipeline.come_out(sequence, data.draw(st.sampled_from([1, 2, 3, EOS])))
    assert pipeline.scheduler.load == 0
    assert pipeline.started == sorted(pipeline.started), "first come, first served"
    for sequence, run in pipeline.runs.items():
        assert (run.reason is not None) is (sequence not in cancelled)


@given(limit=st.integers(1, 4), waiting=st.integers(0, 4), extra=st.integers(1, 3))
def test_no_more_wait_than_may(limit: int, waiting: int, extra: int) -> None:
    scheduler = Scheduler(stages=1, limit=limit, waiting=waiting, chunk=4)
    taken = 0
    for sequence in range(limit + waiting + extra):
        if not scheduler.is_full():
            scheduler.add(sequence, (1,), 1, ())
            taken += 1
    assert taken == scheduler.load == limit + waiting
    assert scheduler.admit() == list(range(limit))
    assert scheduler.admit() == []
    assert scheduler.is_full()
    scheduler.remove(0)
    assert not scheduler.is_full()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_token_that_comes_after_the_end_changes_nothing(stages: int) -> None:
    scheduler = Scheduler(stages=stages, limit=1, waiting=0, chunk=4)
    scheduler.add(1, (5,), 9, (EOS,))
    scheduler.admit()
    scheduler.steps(1)
    progress, steps = scheduler.sampled(1, EOS)
    assert progress is not None
    assert (progress.reason, steps) == ("stop", [])
    scheduler.remove(1)
    assert scheduler.sampled(1, 3) == (None, [])
    assert scheduler.steps(1) == []


def test_one_token_asked_is_one_sample_even_with_lookahead() -> None:
    scheduler = Scheduler(stages=1, limit=1, waiting=0, chunk=4)
    scheduler.add(1, (5,), 1, ())
    scheduler.admit()
    assert scheduler.steps(1) == [Step(1, 0, (5,), sample=True)]
    assert scheduler.steps(1) == []


@given(prompt=st.integers(1, 40), replayed=st.integers(1, 20), chunk=st.integers(1, 16), stages=st.integers(1, 3))
def test_what_is_replayed_is_cut_into_the_steps_that_it_came_by(
    prompt: int, replayed: int, chunk: int, stages: int
) -> None:
    tokens = tuple(range(100, 100 + prompt + replayed))
    scheduler = Scheduler(stages=stages, limit=1, waiting=1, chunk=chunk)
    scheduler.add(1, tokens, 1, (EOS,), replayed)
    scheduler.admit()
    queue, seen = deque(scheduler.steps(1)), []
    while queue:
        step = queue.popleft()
        seen.append(step.tokens)
        if not step.sample:
            scheduler.prefilled(1)
            queue.extend(scheduler.steps(1))
    whole = tokens[: prompt - 1]
    chunks = [whole[start : start + chunk] for start in range(0, len(whole), chunk)]
    assert seen == [*chunks, *((token,) for token in tokens[prompt - 1 :])]
