"""Sequences that share forward passes give each the text that it gives alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from msgspec.structs import replace

from runtime.inference.capacity import CACHE_STEP, Capacity
from runtime.spi import Sampling
from runtime.testing.models import tiny_llama
from tests.inference.pipeline import LocalPipeline, all_tokens, shards

PROMPTS = tuple(
    tuple(range(start, start + length))
    for start, length in ((3, 1), (9, 2), (30, 16), (7, 33), (50, 90), (4, 5), (20, 61))
)
DRAWN = Sampling(top_p=0.95, presence_penalty=0.5)
CUTS = {1: (0, 4), 2: (0, 2, 4), 3: (0, 1, 3, 4)}


def capacity(stages: int, **more: Any) -> Capacity:
    fixed = Capacity(stages=stages, sequences=8, waiting=8, chunk=16, context=512, positions=1 << 20)
    return replace(fixed, **more)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(("stages", "seed"), [(1, 0), (2, 1), (2, 2), (3, 3)])
def test_greedy_text_is_the_same_alone_and_in_any_batch(tiny: Path, stages: int, seed: int) -> None:
    parts = shards(tiny, CUTS[stages])
    alone = []
    for prompt in PROMPTS:
        pipeline = LocalPipeline(parts, capacity(stages))
        sequence = pipeline.add(prompt, 20)
        pipeline.run()
        alone.append(pipeline.tokens[sequence])
    order = random.Random(seed)  # noqa: S311 - an order of events, not a secret
    pipeline = LocalPipeline(parts, capacity(stages))
    sequences = []
    for prompt in PROMPTS:
        sequences.append(pipeline.add(prompt, 20))
        pipeline.run(order.choice, until=order.randrange(12))
    pipeline.run(order.choice)
    assert all_tokens(pipeline, sequences) == alone
    assert pipeline.widest > 2


@pytest.mark.parametrize("stages", [2])
def test_sequences_that_gave_up_their_room_go_on_with_the_same_text(tiny: Path, stages: int) -> None:
    parts = shards(tiny, CUTS[stages])
    alone = []
    for prompt in PROMPTS[:3]:
        pipeline = LocalPipeline(parts, capacity(stages))
        sequence = pipeline.add(prompt, 320, sampling=DRAWN)
        pipeline.run()
        alone.append(pipeline.tokens[sequence])
    pipeline = LocalPipeline(parts, capacity(stages, context=2000, positions=1100))
    sequences = [pipeline.add(prompt, 320, sampling=DRAWN) for prompt in PROMPTS[:3]]
    pipeline.run()
    assert all_tokens(pipeline, sequences) == alone
    assert pipeline.taken_in > sum(map(len, PROMPTS[:3])), "something was computed again"


def test_every_row_has_its_own_settings_and_leaves_when_it_likes(tiny: Path) -> None:
    parts = shards(tiny, CUTS[2])
    kinds: list[dict[str, Any]] = [
        {"sampling": Sampling(temperature=0.0)},
        {"sampling": Sampling(top_p=0.9), "seed": 3},
        {"sampling": Sampling(temperature=0.0, repetition_penalty=1.5)},
        {"sampling": Sampling(seed=4), "eos": tuple(range(0, 300, 2)), "min_tokens": 9},
        {"sampling": Sampling(temperature=0.0), "eos": tuple(range(0, 300, 3))},
    ]
    alone = []
    for prompt, kind in zip(PROMPTS, kinds, strict=False):
        pipeline = LocalPipeline(parts, capacity(2))
        sequence = pipeline.add(prompt, 20, **kind)
        pipeline.run()
        alone.append(pipeline.tokens[sequence])
    assert len(alone[3]) > 9
    pipeline = LocalPipeline(parts, capacity(2))
    sequences = [pipeline.add(prompt, 20, **kind) for prompt, kind in zip(PROMPTS, kinds, strict=False)]
    leaver = pipeline.add(PROMPTS[5], 400)
    pipeline.run(until=40)
    pipeline.remove(leaver)
    pipeline.run()
    assert all_tokens(pipeline, sequences) == alone
    assert not any(stage.open for stage in pipeline.stages)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sliding", [None, 48])
def test_a_prompt_that_begins_like_another_one_has_the_text_that_it_has_alone(
    tmp_path: Path, stages: int, sliding: int | None
) -> None:
    parts = shards(tiny_llama(tmp_path / "tiny", sliding=sliding), CUTS[stages])
    trims = all(part.trims for part in parts)
    assert trims is (sliding is None)
    turn = tuple(range(7, 107))

    def alone(prompt: tuple[int, ...]) -> list[int]:
        pipeline = LocalPipeline(parts, capacity(stages))
        sequence = pipeline.add(prompt, 20, sampling=DRAWN)
        pipeline.run()
        return pipeline.tokens[sequence]

    pipeline = LocalPipeline(parts, capacity(stages, keeps=True, trims=trims))
    first, beside = (pipeline.add(prompt, 20, sampling=DRAWN) for prompt in (turn, PROMPTS[3]))
    pipeline.run()
    taken_in = pipeline.taken_in
    following = (
        (*turn, *pipeline.tokens[first], 5, 6, 7),
        (*turn, *pipeline.tokens[first], 8, 9),
        (*turn[:60], 5, 6, 7),
    )
    sequences = [pipeline.add(prompt, 20, sampling=DRAWN) for prompt in following]
    pipeline.run()
    assert all_tokens(pipeline, [first, beside]) == [alone(turn), alone(PROMPTS[3])]
    assert all_tokens(pipeline, sequences) == [alone(prompt) for prompt in following]
    computed = pipeline.taken_in - taken_in
    assert computed < 20 if trims else computed < sum(map(len, following)) - 200


@pytest.mark.parametrize("lost", range(3, 30, 3))
def test_others_have_their_text_after_a_step_that_no_further_stage_heard_of(tiny: Path, lost: int) -> None:
    parts = shards(tiny, CUTS[2])

    def alone(prompt: tuple[int, ...]) -> list[int]:
        pipeline = LocalPipeline(parts, capacity(2))
        sequence = pipeline.add(prompt, 20)
        pipeline.run()
        return pipeline.tokens[sequence]

    pipeline = LocalPipeline(parts, capacity(2, keeps=True, trims=True))
    sequences = {pipeline.add(prompt, 20): prompt for prompt in PROMPTS}
    pipeline.run(until=lost)
    while not pipeline.stages[0].queue:
        pipeline.run(until=1)
    step = pipeline.stages[0].queue.popleft()
    for sequence in pipeline.scheduler.failed(step.number, 1.0):
        pipeline.scheduler.remove(sequence, keep=False)
        sequences.pop(sequence, None)
    pipeline.go_on()
    pipeline.run()
    assert all_tokens(pipeline, sequences) == [alone(prompt) for prompt in sequences.values()]


def test_what_is_kept_takes_no_more_memory_than_it_is_counted_for(tiny: Path) -> None:
    parts = shards(tiny, CUTS[1])
    pipeline = LocalPipeline(parts, capacity(1, keeps=True, trims=True, chunk=512, context=1024))
    mx.synchronize()
    before = mx.get_active_memory()
    for number in range(8):
        pipeline.add(tuple(range(10 * number + 3, 10 * number + 203)), 4 + 4 * number)
    pipeline.run()
    one = parts[0].new_cache()
    mx.eval(parts[0].forward(mx.zeros((1, 1), dtype=mx.int32), one))
    position = sum(array.nbytes for array in parts[0].state(one)) / CACHE_STEP
    mx.eval([parts[0].state(row.cache) for row in pipeline.stages[0].open.values() if row.cache is not None][-1:])
    assert len(pipeline.stages[0].open) == 8
    assert mx.get_active_memory() - before < 1.2 * position * pipeline.scheduler.positions
