"""A step fails, or a node is lost: generations go on with the text that would have been, or say why not."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.actors import ActorRef
from runtime.errors import PlacementRefused, RuntimeFault
from runtime.inference import recovery
from runtime.inference.driver import DriverLimits
from runtime.spi import Delta, Finished, NodeMemory, Sampling
from tests.inference.serving import LONG, PROMPT, Scripted, begun, events, plan_of, reference, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually


async def test_a_step_that_fails_fails_its_micro_batch_only(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        await a.engine.load("tiny")
        async with begun(a, request(max_tokens=LONG)) as good:
            bad = a.engine.generate(request(max_tokens=LONG))
            await anext(bad)
            stage = b.stages()[0]
            await eventually(lambda: len(stage._sequences) == 2)
            victim = stage._sequences[max(stage._sequences)]
            victim.position += 1
            replayed = [event async for event in bad]
            assert [token.token.id for event in replayed if isinstance(event, Delta) for token in event.tokens] == (
                reference(tiny, PROMPT, LONG)
            )
            rest = [event async for event in good]
            assert isinstance(rest[-1], Finished)
            assert rest[-1].usage.completion_tokens == LONG
            assert b.stages() == [stage]
        await eventually(lambda: a.sequences() + b.sequences() == 0)


async def test_an_error_of_mlx_fails_the_sequence_and_not_the_stage(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        stage = a.stages()[0]
        shard: Any = stage._shard
        forward = shard.forward
        shard.forward = lambda inputs, cache, launch: mx.zeros((2, 3)) @ mx.zeros((2, 3))
        with pytest.raises(RuntimeFault, match="matmul"):
            await events(a, request())
        shard.forward = forward
        assert await tokens(a, request()) == reference(tiny, PROMPT, 16)


async def test_losing_a_stages_node_leaves_the_text_as_it_would_have_been_and_frees_the_memory(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        whole = reference(tiny, PROMPT, LONG)
        heard: list[int] = []
        async with (
            asyncio.timeout(DEADLINE),
            contextlib.aclosing(a.engine.generate(request(max_tokens=LONG))) as stream,
        ):
            async for event in stream:
                if isinstance(event, Delta):
                    heard += [token.token.id for token in event.tokens]
                    if len(heard) == 40:
                        b.network.disconnect("a", "a test pulls the plug")
                elif isinstance(event, Finished):
                    assert event.usage.completion_tokens == LONG
        assert heard == whole
        assert len(a.drivers()) == 1
        await eventually(lambda: not b.drivers() and a.sequences() + b.sequences() == 0)
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages() and not b.stages() and not a.drivers())
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=5),
        Sampling(seed=5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, penalize_prompt=False),
    ],
)
async def test_losing_the_drivers_node_goes_on_with_the_same_seeded_text(tiny: Path, sampling: Sampling) -> None:
    order = request(max_tokens=LONG, sampling=sampling)
    async with serving("a", "b", folders={"tiny": tiny}, policy=Scripted(lambda r: plan_of((0, 4)))) as (a, b):
        whole = await tokens(b, order)
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        (served,) = await b.engine.loaded()
        driver, other = (a, b) if a.drivers() else (b, a)
        heard: list[int] = []
        async with asyncio.timeout(DEADLINE), contextlib.aclosing(other.engine.generate(order)) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    heard += [token.token.id for token in event.tokens]
                    if len(heard) == 40:
                        driver.network.disconnect(other.name, "a test pulls the plug")
        assert served.name == "tiny"
        assert heard == whole


async def test_what_cannot_be_resumed_ends_with_a_fault_that_says_why(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(recovery, "LEAST_SECONDS", 1.0)
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        async with asyncio.timeout(DEADLINE), begun(a, request(max_tokens=LONG)) as stream:
            a.memory = NodeMemory(total=8 << 30, available=0)
            await b.network.close()
            with pytest.raises(PlacementRefused, match=r"interrupted after \d+ tokens .*node b.*lost.* not be resumed"):
                async for _ in stream:
                    pass
        await eventually(lambda: a.sequences() == 0)


async def test_losing_the_sessions_node_frees_its_sequences(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}, policy=Scripted(lambda r: plan_of((0, 4)))) as (a, b):
        await a.engine.load("tiny")
        async with begun(b, request(max_tokens=LONG)):
            b.network.disconnect("a", "a test pulls the plug")
            await eventually(lambda: all(not driver._sessions for driver in a.drivers()))
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        assert len(a.stages()) == 1


async def test_sequences_that_wait_for_a_driver_that_ends_wait_for_the_next(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=3, prefix_cache=False, keep_alive=-1)
    async with serving("a", "b", folders={"tiny": tiny}, limits=limits) as (a, b):
        async with begun(a, request(max_tokens=LONG)) as running:
            waiting = [asyncio.create_task(tokens(a, request())) for _ in range(3)]
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 4)
            a.system.stop(ActorRef("a", "/models/1"))
            async for _ in running:
                pass
            assert [len(heard) for heard in await asyncio.gather(*waiting)] == [16] * 3
        await eventually(lambda: a.sequences() + b.sequences() == 0)
