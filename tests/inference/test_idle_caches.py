"""What is dropped while nothing runs is dropped at once, on every stage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.inference.capacity import Capacity
from runtime.inference.driver import DriverLimits
from runtime.inference.protocol import Change
from runtime.inference.scheduler import Scheduler
from runtime.testing.models import tiny_llama
from tests.inference.serving import reference, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually

EOS = 7
KEEPING = Capacity(
    stages=2, sequences=4, waiting=4, chunk=512, context=4096, positions=8192, batches=True, keeps=True, trims=True
)


def run(scheduler: Scheduler) -> list[tuple[Change, ...]]:
    """Let all steps come out; return the changes of those without rows."""
    idle = []
    while steps := scheduler.issue():
        for step in steps:
            if not step.rows:
                assert len(steps) == 1
                idle.append(step.changes)
            scheduler.done(step.number, 0.0)
            for row in step.rows if step.batch is not None else ():
                scheduler.sampled(row.sequence, row.position + 1, EOS)
    return idle


def add(scheduler: Scheduler, sequence: int, prompt: tuple[int, ...]) -> None:
    scheduler.add(sequence, prompt, 5, (EOS,))
    for each in scheduler.admit():
        scheduler.opened(each)


def test_a_kept_cache_that_a_longer_one_covers_is_dropped_though_nothing_runs_any_more() -> None:
    scheduler = Scheduler(KEEPING)
    add(scheduler, 1, tuple(range(100, 200)))
    assert run(scheduler) == [], "what is only kept waits for the next step"
    add(scheduler, 2, tuple(range(100, 300)))
    (changes,) = run(scheduler)
    assert Change(1) in changes
    assert scheduler.closed() == [1]


def test_a_sequence_that_is_removed_while_the_stages_idle_is_dropped() -> None:
    scheduler = Scheduler(KEEPING)
    add(scheduler, 1, tuple(range(100, 200)))
    for step in scheduler.issue():
        scheduler.done(step.number, 0.0)
    scheduler.remove(1, keep=False)
    assert scheduler.closed() == [1]
    (changes,) = run(scheduler)
    assert changes == (Change(1),)
    assert scheduler.issue() == []


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_of_the_turns_of_a_chat_an_idle_model_keeps_the_last_on_every_stage(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    tiny = tiny_llama(tmp_path / "tiny")
    limits = DriverLimits(sequences=4, waiting=4, prefix_cache=True, keep_alive=-1)
    prompt = tuple(range(5, 105))
    async with serving(*names, folders={"tiny": tiny}, limits=limits) as nodes, asyncio.timeout(DEADLINE):
        said = await tokens(nodes[0], request(prompt=prompt, max_tokens=20))
        longer = (*prompt, *said, 9, 10, 11)
        assert await tokens(nodes[0], request(prompt=longer, max_tokens=20)) == reference(tiny, longer, 20)
        for node in nodes:
            (stage,) = node.stages()
            await eventually(lambda stage=stage: list(stage._sequences) == [2])  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
