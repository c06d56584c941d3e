"""A driver whose first stage takes no more steps ends, so that the model can be served by another."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from runtime.inference.stage import Stage
from runtime.spi import Delta
from runtime.testing.models import tiny_llama
from tests.inference.serving import PROMPT, begun, reference, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_a_first_stage_that_is_being_stopped_ends_its_driver_though_its_end_never_comes(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage whose compute thread hangs cannot free its slice, so nobody is told that it is down."""
    tiny = tiny_llama(tmp_path / "tiny")
    freed = asyncio.Event()
    stopped = Stage.stopped

    async def wait_and_stop(stage: Stage) -> None:
        await freed.wait()
        await stopped(stage)

    monkeypatch.setattr(Stage, "stopped", wait_and_stop)
    async with (
        serving(*names, folders={"tiny": tiny}) as nodes,
        asyncio.timeout(DEADLINE),
        contextlib.AsyncExitStack() as stack,
    ):
        stack.callback(freed.set)
        (a, *_) = nodes
        whole = reference(tiny, PROMPT, 300)
        async with begun(a, request(max_tokens=300)) as stream:
            (driver,) = a.drivers()
            a.system.stop(driver._stages[0])
            heard = [token.token.id async for event in stream if isinstance(event, Delta) for token in event.tokens]
        assert heard == whole[len(whole) - len(heard) :]
        assert len(heard) > 200, "it was stopped while it generated"
        assert not freed.is_set()
        await eventually(lambda: driver not in a.drivers())
        assert await tokens(a, request(max_tokens=20)) == whole[:20]
        freed.set()
        await eventually(lambda: sum(len(node.stages()) for node in nodes) == len(names))
