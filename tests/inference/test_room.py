"""Sequences share the room of the KV cache: who came first keeps it, and what is kept gives way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime.inference.capacity import CACHE_STEP, Capacity
from runtime.inference.scheduler import Scheduler
from tests.inference.checked_pipeline import KEEPING, SMALL, TURN, Pipeline


@given(stages=st.integers(1, 3), positions=st.integers(4, 8), count=st.integers(4, 8))
@settings(max_examples=15)
def test_sequences_that_outgrow_the_cache_are_computed_again_and_the_first_one_never_is(
    stages: int, positions: int, count: int
) -> None:
    pipeline = Pipeline(
        Capacity(stages=stages, sequences=8, waiting=8, chunk=64, context=700, positions=positions * CACHE_STEP)
    )
    for _ in range(count):
        pipeline.add(tuple(range(100, 140)), 600)
    pipeline.run()
    assert {run.reason for run in pipeline.runs.values()} == {"length"}
    assert {len(run.tokens) for run in pipeline.runs.values()} == {600}
    assert pipeline.runs[0].starts == 1
    assert sum(run.starts for run in pipeline.runs.values()) > count


def test_what_is_kept_makes_room_for_who_comes_and_the_least_recently_used_goes_first() -> None:
    pipeline = Pipeline(replace(KEEPING, positions=20 * CACHE_STEP, context=5 * CACHE_STEP))
    prompts = [tuple(range(start, start + 1000)) for start in range(10_000, 60_000, 10_000)]
    for prompt in prompts[:3]:
        pipeline.add(prompt, 5)
        pipeline.run()
    pipeline.add((*prompts[0], 7), 5)
    pipeline.run()
    assert pipeline.copied >= 1000
    for prompt in prompts[3:]:
        pipeline.add(prompt, 5)
        pipeline.run()
    copied = pipeline.copied
    pipeline.add((*prompts[1], 7), 5)
    pipeline.run()
    assert pipeline.copied == copied, "it was used longest ago"
    pipeline.add((*prompts[0], 8), 5)
    pipeline.run()
    assert pipeline.copied >= copied + 1000


def test_a_turn_that_leaves_no_room_for_a_copy_takes_the_cache_over() -> None:
    pipeline = Pipeline(replace(KEEPING, positions=6 * CACHE_STEP, context=6 * CACHE_STEP))
    first = pipeline.runs[pipeline.add(TURN, 5)]
    pipeline.run()
    pipeline.add((*TURN, *first.tokens, 4), 5)
    pipeline.run()
    assert pipeline.copied >= len(TURN)


def test_a_sequence_that_gives_up_its_place_while_the_stages_are_told_of_it_is_told_of_once() -> None:
    scheduler = Scheduler(replace(SMALL, positions=4 * CACHE_STEP, context=4 * CACHE_STEP, chunk=512))
    scheduler.add(1, (5,) * 10, 700, ())
    assert scheduler.admit() == [1]
    scheduler.opened(1)
    scheduler.add(2, (5,) * 10, 500, ())
    strangers = scheduler.admit()
    tokens = 0
    while tokens < 600:
        for step in scheduler.issue():
            scheduler.done(step.number, 0.0)
            for row in step.rows if step.batch is not None else ():
                scheduler.sampled(row.sequence, row.position + 1, 1)
                tokens += 1
        strangers += scheduler.admit()
    assert strangers == [2]
    assert scheduler.sequences == [1, 2]
    assert scheduler.positions < 4 * CACHE_STEP, "the second one gave up its place"
    scheduler.opened(2)
    scheduler.opened(2)
    scheduler.remove(1)
    strangers += scheduler.admit()
    assert strangers == [2]
