"""The compute thread does jobs in order, and says what became of each."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest

from runtime.inference.compute import Computation, ComputeThread
from tests.wire.loopback import eventually


@pytest.fixture
async def compute() -> AsyncIterator[ComputeThread]:
    thread = ComputeThread()
    yield thread
    assert thread.close(10)


class Recorder:
    """Submits jobs that write down when their halves run."""

    def __init__(self, compute: ComputeThread) -> None:
        self.compute = compute
        self.log: list[str] = []
        self.results: dict[int, object] = {}
        self.gate = threading.Event()

    def submit(
        self,
        job: int,
        *,
        dispatch: Exception | None = None,
        launch: Exception | None = None,
        collect: Exception | None = None,
        wait: bool = False,
    ) -> None:
        def dispatched() -> Computation[int]:
            self.log.append(f"dispatch {job}")
            if dispatch is not None:
                raise dispatch
            return Computation(collected, launched)

        def launched() -> None:
            self.log.append(f"launch {job}")
            if launch is not None:
                raise launch

        def collected() -> int:
            if wait:
                assert self.gate.wait(10)
            self.log.append(f"collect {job}")
            if collect is not None:
                raise collect
            return job * 10

        self.compute.submit(dispatched, lambda value, error: self.results.update({job: error or value}))

    async def done(self, count: int) -> None:
        await eventually(lambda: len(self.results) == count)


async def test_the_next_job_is_dispatched_before_the_one_before_it_is_collected_and_launched_after(
    compute: ComputeThread,
) -> None:
    recorder = Recorder(compute)
    blocked = threading.Event()
    compute.submit(lambda: Computation(lambda: blocked.wait(10)), lambda value, error: None)
    for job in range(3):
        recorder.submit(job)
    blocked.set()
    await recorder.done(3)
    assert recorder.log == [
        *("dispatch 0", "launch 0"),
        *("dispatch 1", "collect 0", "launch 1"),
        *("dispatch 2", "collect 1", "launch 2"),
        "collect 2",
    ]
    assert recorder.results == {0: 0, 1: 10, 2: 20}


async def test_a_job_alone_is_collected_without_waiting_for_another(compute: ComputeThread) -> None:
    recorder = Recorder(compute)
    recorder.submit(1)
    await recorder.done(1)
    assert recorder.log == ["dispatch 1", "launch 1", "collect 1"]


async def test_a_failure_in_any_part_reaches_who_submitted_it_and_nobody_else(compute: ComputeThread) -> None:
    recorder = Recorder(compute)
    first, second, third = ValueError("first part"), ValueError("second part"), ValueError("third part")
    recorder.submit(1)
    recorder.submit(2, dispatch=first)
    recorder.submit(3)
    recorder.submit(4, launch=second)
    recorder.submit(5)
    recorder.submit(6, collect=third)
    recorder.submit(7)
    await recorder.done(7)
    assert recorder.results == {1: 10, 2: first, 3: 30, 4: second, 5: 50, 6: third, 7: 70}


class Noted:
    """Writes down the times of a kind of job."""

    what = "a job"
    allowed = 10.0

    def __init__(self) -> None:
        self.times: list[float] = []

    def took(self, seconds: float) -> None:
        self.times.append(seconds)


async def test_the_time_of_a_job_is_noted_unless_it_failed_or_teaches_nothing(compute: ComputeThread) -> None:
    def fails() -> Computation[int]:
        raise ValueError

    works, is_empty, failed = Noted(), Noted(), Noted()
    results: list[object] = []
    compute.submit(lambda: Computation(lambda: 1), lambda value, error: results.append(value), works)
    compute.submit(lambda: Computation(lambda: 2, teaches=False), lambda value, error: results.append(value), is_empty)
    compute.submit(fails, lambda value, error: results.append(type(error)), failed)
    await eventually(lambda: len(results) == 3)
    assert {1, 2, ValueError} == {*results}
    assert [len(each.times) for each in (works, is_empty, failed)] == [1, 0, 0]


async def test_done_is_called_on_the_event_loop(compute: ComputeThread) -> None:
    heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    compute.submit(
        lambda: Computation(threading.get_ident), lambda value, error: heard.set_result(threading.get_ident())
    )
    assert await heard == threading.get_ident()
    assert await compute.run(threading.get_ident) != threading.get_ident()


async def test_a_plain_function_runs_after_all_parts_of_the_jobs_before_it(compute: ComputeThread) -> None:
    recorder = Recorder(compute)
    recorder.submit(1, wait=True)
    running = asyncio.create_task(compute.run(lambda: list(recorder.log)))
    await asyncio.sleep(0)
    recorder.gate.set()
    assert await running == ["dispatch 1", "launch 1", "collect 1"]


async def test_plain_functions_run_in_order_and_may_fail(compute: ComputeThread) -> None:
    order: list[int] = []

    def fail() -> None:
        raise KeyError("no")

    work = [compute.run(lambda: order.append(1)), compute.run(fail), compute.run(lambda: order.append(2))]
    heard = await asyncio.gather(*work, return_exceptions=True)
    assert order == [1, 2]
    assert isinstance(heard[1], KeyError)


async def test_one_who_waits_may_be_cancelled_and_the_work_goes_on(compute: ComputeThread) -> None:
    gate, worked = threading.Event(), threading.Event()

    def work() -> None:
        assert gate.wait(10)
        worked.set()

    task = asyncio.create_task(compute.run(work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await compute.run(lambda: None)
    assert worked.is_set()


async def test_nothing_of_a_job_is_kept_when_it_is_over(compute: ComputeThread) -> None:
    class Weights:
        pass

    async def run_one() -> weakref.ref[Weights]:
        weights = Weights()
        await compute.run(lambda: weights and None)
        return weakref.ref(weights)

    kept = await run_one()
    # By when a plain function after it runs, as reclaiming memory does.
    assert await compute.run(lambda: gc.collect() >= 0 and kept() is None)


async def test_once_all_jobs_are_settled_nothing_is_left_of_those_that_failed(compute: ComputeThread) -> None:
    class Weights:
        pass

    def submit_one() -> weakref.ref[Weights]:
        weights = Weights()

        def fail() -> Computation[int]:
            raise ValueError(f"no {weights}")

        compute.submit(fail, lambda value, error: None)
        return weakref.ref(weights)

    kept = submit_one()
    await compute.settle()
    assert await compute.run(lambda: gc.collect() >= 0 and kept() is None)


async def test_closing_lets_the_job_in_hand_be_the_last() -> None:
    compute = ComputeThread()
    recorder = Recorder(compute)
    recorder.submit(1, wait=True)
    await eventually(lambda: "dispatch 1" in recorder.log)
    assert not compute.close(0.01)
    recorder.gate.set()
    assert compute.close(10)
    await recorder.done(1)
    assert recorder.results == {1: 10}


def test_closing_without_work_ends_at_once() -> None:
    assert ComputeThread().close(10)


def test_a_job_that_outlives_the_loop_harms_nobody() -> None:
    compute = ComputeThread()
    gate, ran = threading.Event(), threading.Event()

    async def submit() -> None:
        compute.submit(lambda: Computation(lambda: gate.wait(10)), lambda value, error: None)

    asyncio.run(submit())
    gate.set()

    async def after() -> None:
        await compute.run(ran.set)

    asyncio.run(after())
    assert ran.is_set()
    assert compute.close(10)
