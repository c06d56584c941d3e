"""A model is let go when nobody wants it any more, and its memory with it."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.errors import InvalidRequest, ModelInUse
from runtime.spi import Finished, GenerationRequest, ModelLoaded, ModelUnloaded, RequestFinished, Text
from runtime.testing.models import tiny_llama
from tests.inference.serving import GREEDY, LONG, begun, events, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually


async def test_unloading_waits_for_what_runs(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)) as stream:
            unloading = asyncio.create_task(a.engine.unload("tiny"))
            await eventually(lambda: a.drivers()[0]._lifetime.unloading)
            rest = [event async for event in stream]
            assert isinstance(rest[-1], Finished)
            assert rest[-1].usage.completion_tokens == LONG
        await unloading
        await eventually(lambda: not a.stages() and not len(a.ledger.reservations))
        assert await a.engine.loaded() == []
        await a.engine.unload("tiny")
        assert [type(event) for event in a.telemetry.events if not isinstance(event, RequestFinished)] == [
            ModelLoaded,
            ModelUnloaded,
        ]


async def test_a_model_that_is_wanted_while_it_is_unloaded_stays_and_is_not_loaded_twice(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            reserved = a.ledger.memory().reserved
            (before,) = await a.engine.loaded()
            unloading = asyncio.create_task(a.engine.unload("tiny"))
            await eventually(lambda: a.drivers()[0]._lifetime.unloading)
            assert len(await tokens(a, request())) == 16
            assert a.ledger.memory().reserved == reserved
            (listed,) = await a.engine.loaded()
            assert (listed.stages, listed.active) == (before.stages, 1)
            with pytest.raises(ModelInUse, match="asked for again"):
                await unloading
        assert len(a.stages()) == len(await a.engine.loaded()) == 1
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages() and not a.ledger.memory().reserved)


async def test_an_unload_waits_for_whoever_was_told_that_the_model_is_ready(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        load_tokenizer, told, go_on = a.engine._tokenizer, asyncio.Event(), asyncio.Event()

        async def slowly(*order: Any) -> Any:
            told.set()
            await go_on.wait()
            return await load_tokenizer(*order)

        monkeypatch.setattr(a.engine, "_tokenizer", slowly)
        (driver,) = a.drivers()
        generating = asyncio.create_task(tokens(a, request()))
        await told.wait()
        unloading = asyncio.create_task(a.engine.unload("tiny"))
        await eventually(lambda: driver._lifetime.unloading)
        go_on.set()
        assert len(await generating) == 16
        await unloading
        assert sum(isinstance(event, ModelLoaded) for event in a.telemetry.events) == 1
        await eventually(lambda: not a.stages())


async def test_an_unload_does_not_wait_for_those_who_load_or_are_refused(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        with pytest.raises(InvalidRequest):
            await events(a, GenerationRequest("tiny", Text(""), sampling=GREEDY))
        async with asyncio.timeout(DEADLINE):
            await a.engine.unload("tiny")
        await eventually(lambda: not a.stages())


async def test_a_model_that_nobody_wants_is_unloaded(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        assert len(await tokens(a, request(keep_alive=0))) == 16
        await eventually(lambda: not a.drivers() and not a.stages() and not len(a.ledger.reservations))
        assert await a.engine.loaded() == []
        assert len(await tokens(a, request(keep_alive=-1))) == 16


async def test_a_generation_outlasts_its_keep_alive(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        assert len(await tokens(a, request(keep_alive=0, max_tokens=LONG))) == LONG


@pytest.mark.parametrize("early", [False, True])
async def test_unloading_gives_all_the_memory_back(early: bool, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", hidden=256, vocab=4000)
    async with serving("a", folders={"tiny": folder}) as (a,):
        gc.collect()
        before = await a.compute.run(mx.get_active_memory)
        await a.engine.load("tiny")
        weights = a.telemetry.events[0]
        assert isinstance(weights, ModelLoaded)
        assert await a.compute.run(mx.get_active_memory) - before >= weights.bytes > 4_000_000
        if early:
            # Steps of the last generation may still be on their way.
            async with begun(a, request(max_tokens=LONG)):
                pass
        else:
            await events(a, request())
        await a.engine.unload("tiny")
        await eventually(lambda: any(isinstance(event, ModelUnloaded) for event in a.telemetry.events))
        async with asyncio.timeout(DEADLINE):
            # The last step of a generation that was given up may hold the slice for a moment longer.
            while await a.compute.run(mx.get_active_memory) - before >= 100_000:  # noqa: ASYNC110 - MLX tells nobody
                await asyncio.sleep(0.01)
        assert await a.compute.run(mx.get_cache_memory) < 100_000
