"""Prompts take turns with the decoding of others and with each other."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from runtime.inference.pace import CALM_EVERY
from tests.inference.checked_pipeline import SMALL, Pipeline


def test_prompts_take_turns_with_the_decoding_of_others_and_with_each_other() -> None:
    pipeline = Pipeline(replace(SMALL, chunk=4))
    pipeline.add((5,), 3000)
    pipeline.run(until=40)
    long, short = pipeline.add(tuple(range(200)), 2), pipeline.add(tuple(range(24)), 2)
    pipeline.turns.clear()
    pipeline.run(until=60)
    turns = pipeline.turns
    assert turns.count("prompt") > 10
    assert all(turns[index : index + 2] != ["prompt", "prompt"] for index in range(len(turns)))
    assert pipeline.runs[short].reason == "length"
    assert pipeline.runs[long].reason is None


def test_prompts_that_come_while_the_first_one_is_computed_are_taken_in_together() -> None:
    pipeline = Pipeline(replace(SMALL, sequences=8, waiting=0, chunk=512))
    for _ in range(8):
        pipeline.add(tuple(range(16)), 9)
    pipeline.run()
    assert pipeline.turns.count("prompt") == 2


def test_now_and_then_a_turn_is_left_out_to_see_what_decoding_takes_alone() -> None:
    pipeline = Pipeline(replace(SMALL, chunk=4))
    pipeline.add((5,), 3000)
    pipeline.run(until=40)
    pipeline.add(tuple(range(900)), 2)
    pipeline.turns.clear()
    pipeline.run(until=400)
    rounds = "".join(turn[0] for turn in pipeline.turns).split("p")[1:-1]
    assert set(rounds) == {"d", "dd"}
    assert rounds.count("dd") == pytest.approx(len(rounds) / (CALM_EVERY + 1), abs=2)


def test_a_turn_is_left_out_where_there_are_more_micro_batches_than_stages_too() -> None:
    pipeline = Pipeline(replace(SMALL, chunk=16, positions=100_000, context=12_000))
    for length in (3, 9000):  # too different to share a micro-batch
        pipeline.add(tuple(range(length)), 3000)
    pipeline.run(until=3000)
    pipeline.add(tuple(range(9000)), 2)
    pipeline.turns.clear()
    pipeline.run(until=400)
    rounds = "".join(turn[0] for turn in pipeline.turns).split("p")[1:-1]
    # Each of the two has to step twice without a prompt in between.
    assert max(map(len, rounds)) == 3
    assert rounds.count("ddd") == pytest.approx(len(rounds) / CALM_EVERY, rel=0.4)
