"""Micro-batches: one for each stage, of one size, and of sequences about as long as each other."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.inference.checked_pipeline import SMALL, Pipeline


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sequences", [2, 3, 7, 12])
def test_every_stage_has_a_micro_batch_and_they_are_of_one_size(stages: int, sequences: int) -> None:
    pipeline = Pipeline(replace(SMALL, stages=stages, sequences=16))
    for _ in range(sequences):
        pipeline.add((5,), 400)
    pipeline.run(until=400)
    sizes = [len(rows) for rows in pipeline.batches.values()]
    assert len(sizes) == min(stages, sequences)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("gone", [(0, 2, 4), (1, 3, 5), (0, 1, 2, 3)])
def test_micro_batches_are_evened_out_when_sequences_leave_one(gone: tuple[int, ...]) -> None:
    pipeline = Pipeline(replace(SMALL, stages=2, sequences=8))
    for _ in range(8):
        pipeline.add((5,), 3000)
    pipeline.run(until=100)
    for sequence in gone:
        pipeline.remove(sequence)
    pipeline.run(until=100)
    sizes = [len(rows) for rows in pipeline.batches.values()]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 1


def test_a_sequence_far_longer_than_others_does_not_make_them_as_long() -> None:
    pipeline = Pipeline(replace(SMALL, context=40_000, positions=1_000_000, chunk=2048, sequences=8))
    for _ in range(6):
        pipeline.add((5,), 9000)
    long = pipeline.add(tuple(range(20_000)), 9000)
    pipeline.run(until=200)
    assert (long,) in pipeline.batches.values()
