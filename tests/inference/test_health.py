"""A compute thread that hangs is noticed, and so is its return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from runtime.errors import NodeUnhealthy
from runtime.inference.compute import Computation, ComputeThread, InHand
from runtime.inference.health import TICK, ComputeHealth, StepWatch
from runtime.inference.step_times import FACTOR, StepTimes
from tests.wire.loopback import eventually


def test_a_step_may_take_many_times_as_long_as_its_like_did_and_never_less_than_the_least() -> None:
    times = StepTimes(least=5.0)
    times.expected(1).took(0.01)
    assert times.expected(1).allowed == 5.0
    times.expected(1).took(2.0)
    assert times.expected(1).allowed == FACTOR * 2.0


def test_the_first_step_of_a_size_is_never_late() -> None:
    times = StepTimes(least=5.0)
    times.expected(1).took(0.01)
    assert times.expected(512).allowed is None
    times.expected(600).took(3.0)
    assert times.expected(512).allowed == FACTOR * 3.0, "512 and 600 tokens are of one kind"
    assert times.expected(1).allowed == 5.0


def test_one_slow_step_is_not_the_measure_for_ever() -> None:
    times = StepTimes(least=5.0)
    times.expected(1).took(60.0)
    for _ in range(400):
        times.expected(1).took(0.01)
    assert times.expected(1).allowed == 5.0


def late_after(allowed: float | None, *, gap: float = TICK, seconds: float = 60.0) -> float | None:
    """When a step that never ends is told to be late, by looks at it that are so far apart."""
    watch, now = StepWatch(0.0), 0.0
    while now < seconds:
        now += gap
        if watch.tick(InHand(1, allowed), now) is not None:
            return now
    return None


def test_a_step_is_late_once_its_time_is_over() -> None:
    assert late_after(5.0) == pytest.approx(5.0, abs=2 * TICK)
    assert late_after(None) is None


def test_time_in_which_the_whole_process_stood_still_is_not_counted() -> None:
    watch = StepWatch(0.0)
    assert watch.tick(InHand(1, 5.0), TICK) is None
    assert watch.tick(InHand(1, 5.0), TICK + 3600) is None


def test_a_thread_that_goes_on_is_never_late_however_much_it_has_to_do() -> None:
    watch = StepWatch(0.0)
    assert all(watch.tick(InHand(number, 0.5), number * TICK) is None for number in range(1, 200))
    assert watch.tick(None, 200 * TICK) is None


class Watched:
    """A compute thread under watch, and what its peers would hear."""

    def __init__(self) -> None:
        self.compute = ComputeThread(patience=0.5)
        self.told: list[str | None] = []
        self.health = ComputeHealth("n", self.compute, lambda: self.told.append(self.health.reason))
        self.gate = threading.Event()
        self.times = StepTimes(self.compute.patience)
        self.results: list[tuple[object, BaseException | None]] = []

    def step(self, work: object = None) -> None:
        """Submit a step that does what ``work`` does."""
        collect = work if callable(work) else lambda: "done"
        self.compute.submit(
            lambda: Computation(collect),
            lambda value, error: self.results.append((value, error)),
            self.times.expected(1),
        )

    async def stick(self) -> None:
        """Submit a step that hangs, and wait until it is noticed."""
        self.step()
        await eventually(lambda: len(self.results) == 1)
        self.results.clear()
        self.step(lambda: self.gate.wait(30))
        await eventually(lambda: self.health.reason is not None)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    task = asyncio.create_task(made.health.watch())
    yield made
    task.cancel()
    made.gate.set()
    assert made.compute.close(10)


async def test_what_waits_for_a_thread_that_hangs_fails_and_new_work_is_refused_at_once(watched: Watched) -> None:
    watched.step()
    await eventually(lambda: len(watched.results) == 1)
    watched.results.clear()
    watched.step(lambda: watched.gate.wait(30))
    watched.step()
    waiting = asyncio.create_task(watched.compute.run(lambda: 1))
    with pytest.raises(NodeUnhealthy, match=r"node n is unhealthy: a step has not come back .* for 0\.\d s; restart"):
        await asyncio.wait_for(waiting, 10)
    assert [type(error) for _, error in watched.results] == [NodeUnhealthy] * 2
    with pytest.raises(NodeUnhealthy):
        await asyncio.wait_for(watched.compute.run(lambda: 1), 1)


async def test_the_peers_are_told_before_the_work_fails(watched: Watched) -> None:
    told_when_failed: list[list[str | None]] = []
    watched.step()
    await eventually(lambda: len(watched.results) == 1)
    watched.compute.submit(
        lambda: Computation(lambda: watched.gate.wait(30)),
        lambda value, error: told_when_failed.append(list(watched.told)),
        watched.times.expected(1),
    )
    await eventually(lambda: len(told_when_failed) == 1)
    assert len(told_when_failed[0]) == 1


async def test_a_thread_that_answers_again_is_used_again_and_its_late_result_is_dropped(watched: Watched) -> None:
    await watched.stick()
    watched.results.clear()
    watched.gate.set()
    await eventually(lambda: watched.health.reason is None)
    assert await watched.compute.run(lambda: 2) == 2
    assert watched.results == []
    assert [reason is None for reason in watched.told] == [False, True]


async def test_what_cleans_up_waits_for_a_thread_that_hangs(watched: Watched) -> None:
    early = asyncio.create_task(watched.compute.run(lambda: "early", outlasts=True))
    assert await early == "early"
    await watched.stick()
    late = asyncio.create_task(watched.compute.run(lambda: "late", outlasts=True))
    await asyncio.sleep(0)
    assert not late.done()
    watched.gate.set()
    assert await asyncio.wait_for(late, 10) == "late"


async def test_a_load_may_take_as_long_as_it_likes(watched: Watched) -> None:
    loading = asyncio.create_task(watched.compute.run(lambda: watched.gate.wait(30)))
    await eventually(lambda: watched.compute.in_hand() is not None)
    in_hand = watched.compute.in_hand()
    assert in_hand is not None
    assert in_hand.allowed is None
    watched.gate.set()
    assert await loading
