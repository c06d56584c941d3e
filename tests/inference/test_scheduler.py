"""Whatever order results come in, every sequence takes its steps in order, within the cache, and comes to an end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime.inference.capacity import CACHE_STEP, Capacity
from runtime.inference.scheduler import Scheduler
from tests.inference.checked_pipeline import EOS, SMALL, Pipeline


@given(
    data=st.data(),
    stages=st.integers(1, 4),
    limit=st.integers(1, 6),
    chunk=st.integers(1, 300),
    batches=st.booleans(),
    positions=st.integers(3, 12),
    sizes=st.lists(st.tuples(st.integers(1, 600), st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=8),
    keeps=st.booleans(),
    trims=st.booleans(),
)
@settings(max_examples=100)
def test_any_interleaving_gives_every_sequence_its_steps_in_order_and_an_end(
    data: st.DataObject,
    stages: int,
    limit: int,
    chunk: int,
    batches: bool,
    positions: int,
    sizes: list[tuple[int, int, int]],
    keeps: bool,
    trims: bool,
) -> None:
    pipeline = Pipeline(
        Capacity(
            stages=stages,
            sequences=limit,
            waiting=10,
            chunk=chunk,
            context=700,
            positions=positions * CACHE_STEP,
            batches=batches,
            keeps=keeps,
            trims=trims,
        )
    )
    cancelled = set()
    draw = data.draw(st.randoms(use_true_random=False))
    while sizes or pipeline.busy:
        if sizes and (not pipeline.busy or draw.random() < 0.1):
            length, generated, left = sizes.pop()
            prompt = tuple(range(100, 100 + length))
            pipeline.add(prompt, generated + left, tuple(range(1000, 1000 + generated)), draw.choice("ab"))
        alive = pipeline.scheduler.sequences
        if alive and draw.random() < 0.02:
            victim = draw.choice(alive)
            cancelled.add(victim)
            pipeline.remove(victim)
        if pipeline.busy:
            pipeline.advance(draw.choice(pipeline.busy), draw.choice([1, 2, 3, 4, 5, 6, EOS]))
    assert pipeline.scheduler.load == 0
    assert keeps or not pipeline.kept
    pipeline.scheduler.forget_prefixes()
    assert pipeline.scheduler.positions == 0
    assert pipeline.started == sorted(pipeline.started), "first come, first served"
    for sequence, run in pipeline.runs.items():
        assert (run.reason is not None) is (sequence not in cancelled)


@given(limit=st.integers(1, 4), waiting=st.integers(0, 4), extra=st.integers(1, 3))
def test_no_more_wait_than_may(limit: int, waiting: int, extra: int) -> None:
    scheduler = Scheduler(replace(SMALL, sequences=limit, waiting=waiting))
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
    scheduler = Scheduler(replace(SMALL, stages=stages))
    scheduler.add(1, (5,), 9, (EOS,))
    for sequence in scheduler.admit():
        scheduler.opened(sequence)
    steps = scheduler.issue()
    scheduler.done(steps[0].number, 0.1)
    progress = scheduler.sampled(1, 1, EOS)
    assert progress is not None
    assert progress.reason == "stop"
    assert scheduler.sampled(1, 2, 3) is None
    assert not any(step.rows for step in scheduler.issue())
    assert scheduler.done(999, 0.3) == ()


def test_one_token_asked_is_one_step_even_with_lookahead() -> None:
    pipeline = Pipeline(SMALL)
    pipeline.add((5,), 1)
    assert [len(place) for place in pipeline.places] == [1, 0]
    pipeline.run()
    assert pipeline.turns == ["decode"]
