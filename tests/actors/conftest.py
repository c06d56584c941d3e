"""Actor tests run in virtual time: when every task waits, the clock jumps to the next timer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.actors import ActorSystem
from runtime.testing.clock import virtual_clock


@pytest.fixture
def anyio_backend() -> Any:
    return virtual_clock()


@pytest.fixture
async def system() -> AsyncIterator[ActorSystem]:
    made = ActorSystem("here")
    yield made
    await made.shut_down(0)
