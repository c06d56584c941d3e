"""A compute thread that hangs is noticed, and so is its return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from runtime.errors import NodeUnhealthy
from runtime.inference.compute import Computation, ComputeThread, InHand
from runtime.inference.health import TICK, ComputeHealth, PartWatch
from runtime.inference.step_times import (
    BYTES_A_SECOND,
    FACTOR,
    FIRST,
    SLOWEST_READ,
    Bounded,
    StepTimes,
    estimate,
    longest_read,
)
from runtime.spi import LayerSeconds, LayerSpan
from tests.wire.loopback import eventually


def no_estimate(tokens: int) -> float:
    return 0.0 * tokens


def test_a_step_may_take_many_times_as_long_as_its_like_did_and_never_less_than_the_least() -> None:
    times = StepTimes(5.0, no_estimate)
    times.expected(1).took(0.01)
    assert times.expected(1).allowed == 5.0
    times.expected(1).took(2.0)
    assert times.expected(1).allowed == FACTOR * 2.0


def test_the_first_step_of_a_size_may_take_long_and_as_its_like_it_may_not() -> None:
    times = StepTimes(5.0, no_estimate)
    times.expected(1).took(0.01)
    assert times.expected(512).allowed == FIRST * 5.0
    times.expected(600).took(0.3)
    assert times.expected(512).allowed == FACTOR * 0.3, "512 and 600 tokens are of one kind"
    assert times.expected(1).allowed == 5.0


def test_the_first_step_of_a_size_is_judged_by_steps_of_other_sizes() -> None:
    times = StepTimes(5.0, lambda tokens: 1e6)
    times.expected(1).took(2.0)
    assert times.expected(512).allowed == FACTOR * 2.0 * 512, "a token may take as long as it does alone"
    times.expected(512).took(200.0)
    assert times.expected(64).allowed == FACTOR * 200.0, "and no less than with fewer"


def test_the_very_first_step_is_judged_by_what_was_measured_or_else_by_the_bytes_of_the_weights() -> None:
    span = LayerSpan(1, 3, 4)
    measured = LayerSeconds((9.0, 0.5, 0.5, 9.0), (9.0, 0.2, 0.2, 9.0), (9.0, 0.1, 0.1, 9.0))
    assert StepTimes(5.0, estimate(10, span, measured)).expected(512).allowed == pytest.approx(
        FACTOR * (1.0 + 512 * 0.2)
    )
    slice_bytes = int(BYTES_A_SECOND / 10)
    assert StepTimes(5.0, estimate(slice_bytes, span, None)).expected(512).allowed == pytest.approx(FACTOR * 51.2)
    assert StepTimes(5.0, estimate(10, span, None)).expected(1).allowed == FIRST * 5.0


def test_a_step_that_only_drops_caches_is_no_measure_of_others() -> None:
    times = StepTimes(5.0, lambda tokens: 1e6)
    times.expected(0).took(0.001)
    assert times.expected(512).allowed == FACTOR * 1e6


def test_a_slow_disk_has_time_for_the_largest_piece_of_a_model() -> None:
    assert longest_read(int(SLOWEST_READ) * 1000, 3, 10) == pytest.approx(100.0), "all experts of a layer"
    assert longest_read(int(SLOWEST_READ) * 1000, int(SLOWEST_READ) * 300, 10) == pytest.approx(300.0), "the embedding"


def test_one_slow_step_is_not_the_measure_for_ever() -> None:
    times = StepTimes(5.0, no_estimate)
    times.expected(1).took(60.0)
    for _ in range(400):
        times.expected(1).took(0.01)
    assert times.expected(1).allowed == 5.0


def late_after(allowed: float, *, gap: float = TICK, seconds: float = 60.0) -> float | None:
    """When a step that never ends is told to be late, by looks at it that are so far apart."""
    watch, now = PartWatch(0.0), 0.0
    while now < seconds:
        now += gap
        if watch.tick(InHand(1, allowed), now) is not None:
            return now
    return None


def test_a_step_is_late_once_its_time_is_over() -> None:
    assert late_after(5.0) == pytest.approx(5.0, abs=2 * TICK)


def test_time_in_which_the_whole_process_stood_still_is_not_counted() -> None:
    watch = PartWatch(0.0)
    assert watch.tick(InHand(1, 5.0), TICK) is None
    assert watch.tick(InHand(1, 5.0), TICK + 3600) is None


def test_a_thread_that_goes_on_is_never_late_however_much_it_has_to_do() -> None:
    watch = PartWatch(0.0)
    assert all(watch.tick(InHand(number, 0.5), number * TICK) is None for number in range(1, 200))
    assert watch.tick(None, 200 * TICK) is None


class Watched:
    """A compute thread under watch, and what its peers would hear."""

    def __init__(self) -> None:
        self.compute = ComputeThread(patience=0.5)
        self.told: list[str | None] = []
        self.health = ComputeHealth("n", self.compute, lambda: self.told.append(self.health.reason))
        self.gate = threading.Event()
        self.times = StepTimes(self.compute.patience, no_estimate)
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


async def test_each_progress_of_a_load_begins_its_time_anew(watched: Watched) -> None:
    gates = [threading.Event() for _ in range(4)]

    def load() -> str:
        for gate in gates:
            gate.wait(30)
            watched.compute.got_on()
        return "loaded"

    loading = asyncio.create_task(watched.compute.run(load, expected=Bounded("loading layers", 7.0)))
    seen: list[InHand | None] = [None]
    for gate in gates:
        await eventually(lambda: watched.compute.in_hand() not in seen)
        seen.append(watched.compute.in_hand())
        gate.set()
    assert await loading == "loaded"
    watch = PartWatch(0.0)
    late = [
        watch.tick(in_hand, index * 5.0 + second)
        for index, in_hand in enumerate(seen[1:])
        for second in (TICK, 1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    assert late == [None] * len(late), "20 s in all, and never 7 s without progress"


async def test_a_load_that_hangs_makes_the_node_unhealthy_and_says_what_it_was(watched: Watched) -> None:
    def load() -> str:
        watched.compute.got_on()
        watched.gate.wait(30)
        watched.compute.got_on()
        return "loaded"

    loading = asyncio.create_task(watched.compute.run(load, expected=Bounded("loading layers 0-3 of 4 of m", 0.5)))
    with pytest.raises(NodeUnhealthy, match=r"node n is unhealthy: loading layers 0-3 of 4 of m has not come back"):
        await asyncio.wait_for(loading, 10)
    assert [reason is None for reason in watched.told] == [False]
    watched.gate.set()
    await eventually(lambda: watched.health.reason is None)


async def test_no_work_may_take_for_ever(watched: Watched) -> None:
    running = asyncio.create_task(watched.compute.run(lambda: watched.gate.wait(30), outlasts=True))
    await eventually(lambda: watched.compute.in_hand() is not None)
    in_hand = watched.compute.in_hand()
    assert in_hand is not None
    assert in_hand.allowed == FIRST * watched.compute.patience
    watched.gate.set()
    assert await running
