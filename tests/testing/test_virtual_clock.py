"""Virtual time: exact, fast, and loud about what it cannot do."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import anyio
import anyio.to_thread
import pytest

from runtime.testing.clock import (
    NothingLeftToDo,
    RealInputOutput,
    TooMuchTime,
    VirtualClockLoop,
    VirtualTimeError,
    run,
    virtual_clock,
)


@pytest.fixture
def anyio_backend() -> Any:
    return virtual_clock()


async def test_sleeping_takes_no_real_time_and_exactly_the_virtual_time() -> None:
    loop = asyncio.get_running_loop()
    virtual, real = loop.time(), time.monotonic()
    await anyio.sleep(3600)
    assert loop.time() == virtual + 3600
    assert time.monotonic() - real < 5


async def test_timers_fire_in_order_and_ready_work_goes_before_time() -> None:
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, float]] = []
    start = loop.time()

    async def note(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        seen.append((name, loop.time() - start))

    async with anyio.create_task_group() as group:
        for name, seconds in (("late", 2.0), ("soon", 0.5), ("now", 0.0)):
            group.start_soon(note, name, seconds)
    assert seen == [("now", 0.0), ("soon", 0.5), ("late", 2.0)]


async def test_a_deadline_of_anyio_ends_at_its_virtual_time() -> None:
    before = asyncio.get_running_loop().time()
    with anyio.move_on_after(30) as scope:
        await anyio.sleep(31)
    assert scope.cancelled_caught
    assert asyncio.get_running_loop().time() == before + 30


def test_a_deadlock_is_told_with_the_tasks_that_wait() -> None:
    async def main() -> None:
        asyncio.current_task().set_name("the one that waits")  # type: ignore[union-attr]  # a task runs this
        await asyncio.Event().wait()

    with pytest.raises(NothingLeftToDo, match=r"the one that waits at .*test_virtual_clock\.py"):
        run(main())


def test_periodic_work_that_never_ends_is_stopped_at_the_limit() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110 - it stands for heartbeats
            await asyncio.sleep(1)

    with pytest.raises(TooMuchTime, match="100 s of virtual time"):
        run(main(), lambda: VirtualClockLoop(limit=100))


async def _connect() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def _resolve() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


async def _subprocess() -> None:
    await asyncio.create_subprocess_exec(sys.executable, "-c", "")


async def _receive() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.bind(("127.0.0.1", 0))
        await asyncio.get_running_loop().sock_recv(one, 1)


async def _executor() -> None:
    await asyncio.to_thread(time.monotonic)


@pytest.mark.parametrize("work", [_connect, _resolve, _receive, _executor])
def test_real_input_and_output_is_refused(work: Any) -> None:
    with pytest.raises(RealInputOutput, match="virtual time cannot"):
        run(_as_coroutine(work()))


def test_a_subprocess_is_refused() -> None:
    with pytest.raises(RealInputOutput):
        run(_subprocess())


def test_a_thread_of_anyio_is_refused() -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(time.monotonic)

    with pytest.raises(VirtualTimeError):
        run(main())


async def _as_coroutine(work: Coroutine[Any, Any, None]) -> None:
    await work
