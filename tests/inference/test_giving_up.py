"""A generation that is given up, or that fails by itself, leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.errors import ActorStopped, Overloaded, RuntimeFault
from runtime.inference.driver import DriverLimits
from runtime.inference.protocol import Cancel, Submit, Submitted
from runtime.inference.session import Session
from runtime.spi import RequestFinished
from tests.inference.serving import GREEDY, LONG, PROMPT, begun, events, request, serving, tokens
from tests.wire.loopback import DEADLINE, Observer, eventually


async def test_closing_a_generation_early_frees_everything(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        async with begun(b, request(max_tokens=LONG)):
            assert a.sequences() > 0
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        assert isinstance(b.telemetry.events[-1], RequestFinished)
        assert b.telemetry.events[-1].reason == "cancelled"
        assert len(await tokens(b, request())) == 16


@pytest.mark.parametrize("turns", range(12))
async def test_closing_a_generation_at_any_early_moment_frees_everything(turns: int, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        stream = a.engine.generate(request(max_tokens=LONG))
        await anext(stream)
        for _ in range(turns):
            await asyncio.sleep(0)
        await stream.aclose()
        await eventually(lambda: a.sequences() == 0)
        # Whatever the stage was told late is in its mailbox before this.
        assert len(await tokens(a, request())) == 16
        await eventually(lambda: a.sequences() == 0)


async def test_a_sequence_that_is_cancelled_before_it_is_opened_leaves_nothing_on_the_stage(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        (entry,) = a.registry.entries()
        session = a.system.spawn(lambda: Observer(entry.driver, []), "session")
        submit = Submit(session, PROMPT, GREEDY, seed=0, max_tokens=9, logprobs=None, eos=())
        submitting = asyncio.create_task(a.system.ask(entry.driver, submit, 10))
        await asyncio.sleep(0)
        # Both are in the driver's mailbox now, and it takes them without a turn of the loop in between.
        a.system.tell(entry.driver, Cancel(1))
        assert await submitting == Submitted(1)
        assert len(await tokens(a, request())) == 16
        await eventually(lambda: a.sequences() == 0)


async def test_a_sequence_that_waits_can_be_given_up(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=2, prefix_cache=False, keep_alive=-1)
    async with serving("a", folders={"tiny": tiny}, limits=limits) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            waiting = a.engine.generate(request())
            await anext(waiting)
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 2)
            await waiting.aclose()
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 1)
        await eventually(lambda: a.sequences() == 0)


async def test_one_generation_too_many_is_refused_and_the_others_go_on(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=1, prefix_cache=False, keep_alive=-1)
    async with (
        serving("a", folders={"tiny": tiny}, limits=limits) as (a,),
        begun(a, request(max_tokens=LONG)) as running,
    ):
        second = asyncio.create_task(tokens(a, request()))
        await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 2)
        with pytest.raises(Overloaded, match="try again"):
            await events(a, request())
        await running.aclose()
        assert len(await second) == 16


async def test_a_session_that_breaks_ends_its_generation_with_a_fault(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Session, token: object) -> None:
        raise KeyError("no such token")

    async with serving("a", folders={"tiny": tiny}) as (a,):
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_on_token", broken)
            async with asyncio.timeout(DEADLINE):
                with pytest.raises(ActorStopped):
                    await events(a, request())
        await eventually(lambda: a.sequences() == 0)
        assert len(await tokens(a, request())) == 16


async def test_stopping_the_node_ends_generations_with_a_fault(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,), begun(a, request(max_tokens=LONG)) as stream:
        stopping = asyncio.create_task(a.system.shut_down(2.0))
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(RuntimeFault):
                async for _ in stream:
                    pass
        await stopping


async def test_the_tokens_of_a_generation_that_is_given_up_are_counted(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            pass
        event = a.telemetry.events[-1]
        assert isinstance(event, RequestFinished)
        assert event.reason == "cancelled"
        assert event.completion_tokens > 0
