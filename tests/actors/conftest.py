"""Actor tests run in virtual time: when every task waits, the clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from runtime.actors import ActorSystem


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for a timer, moves the clock there instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("every task waits and no timer is set: the test would never end")
        self.now += max(0.0, timeout)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at zero and only moves by waiting."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Callable[[], Any]]]:
    return "asyncio", {"loop_factory": VirtualClockLoop}


@pytest.fixture
async def system() -> AsyncIterator[ActorSystem]:
    made = ActorSystem("here")
    yield made
    await made.shut_down(0)
