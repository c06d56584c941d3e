"""Prompts take turns with the decoding of others and with each other."""

from __future__ import annotations

from msgspec.structs import replace

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
