"""A sequence begins with the cache of one that ended, if its owner and its tokens are the same."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from runtime.inference.protocol import Change
from runtime.inference.scheduler import Scheduler
from tests.inference.checked_pipeline import EOS, KEEPING, TURN, Pipeline


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("trims", [True, False])
def test_the_second_turn_of_a_chat_computes_what_is_new(stages: int, trims: bool) -> None:
    pipeline = Pipeline(replace(KEEPING, stages=stages, trims=trims))
    first = pipeline.runs[pipeline.add(TURN, 50)]
    pipeline.run(token=3)
    pipeline.add((*TURN, *first.tokens, 4, 4, 4), 5)
    pipeline.run()
    # With one stage, or where only as a whole, what ran over the last token counts too.
    assert pipeline.copied >= len(TURN) + 49


def test_a_prompt_that_differs_within_begins_where_it_does_if_the_cache_can_be_cut() -> None:
    for trims, copied in ((True, 600), (False, 0)):
        pipeline = Pipeline(replace(KEEPING, trims=trims))
        pipeline.add(TURN, 5)
        pipeline.run()
        pipeline.add((*TURN[:600], 7, 8, 9), 5)
        pipeline.run()
        assert pipeline.copied == copied


def test_nobody_finds_what_another_owner_has() -> None:
    pipeline = Pipeline(KEEPING)
    pipeline.add(TURN, 5, owner="one")
    pipeline.run()
    pipeline.add(TURN, 5, owner="other")
    pipeline.run()
    assert pipeline.copied == 0
    pipeline.add(TURN, 5, owner="one")
    pipeline.run()
    assert pipeline.copied == len(TURN) - 1


def test_after_a_failure_nothing_that_was_kept_is_used() -> None:
    pipeline = Pipeline(KEEPING)
    pipeline.add(TURN, 5)
    pipeline.run()
    pipeline.scheduler.forget_prefixes()
    pipeline.add(TURN, 5)
    pipeline.run()
    assert pipeline.copied == 0


def test_stages_may_forget_a_sequence_once_the_step_that_drops_its_cache_is_done() -> None:
    pipeline = Pipeline(KEEPING)
    kept = pipeline.add(TURN, 5)
    pipeline.run()
    assert pipeline.scheduler.closed() == []
    pipeline.scheduler.forget_prefixes()
    short = pipeline.add((5,), 5)
    assert pipeline.scheduler.closed() == []
    pipeline.run()
    assert sorted(pipeline.scheduler.closed()) == [kept, short]


def test_a_prefix_stays_until_who_was_admitted_with_it_has_begun() -> None:
    scheduler = Scheduler(KEEPING)

    def run(sequence: int) -> None:
        scheduler.opened(sequence)
        while steps := scheduler.issue():
            for step in steps:
                scheduler.done(step.number, 0.0)
                for row in step.rows if step.batch is not None else ():
                    scheduler.sampled(row.sequence, row.position + 1, EOS)

    scheduler.add(1, TURN[:100], 5, (EOS,))
    run(*scheduler.admit())
    scheduler.add(2, (*TURN[:150],), 5, (EOS,))
    scheduler.add(3, (*TURN[:100], 8, 9), 5, (EOS,))
    assert scheduler.admit() == [2, 3]
    run(2)  # it has all of the first one, which the third has yet to copy
    scheduler.opened(3)
    (step, *_) = scheduler.issue()
    assert Change(3, 1, 100) in step.changes
    assert Change(1) not in step.changes[: step.changes.index(Change(3, 1, 100))]
