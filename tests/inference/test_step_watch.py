"""A step that is lost on its way is noticed, and one that only takes long is not taken for lost."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from runtime.actors import Actor, Message
from runtime.inference import step_watch
from runtime.inference.driver import Driver
from runtime.inference.protocol import AskSteps, Hidden, Sampled, Step, StepsHeld
from runtime.inference.stage import Stage
from runtime.inference.step_watch import LOOKS, StepWatch
from runtime.testing.models import tiny_llama
from tests.inference.serving import PROMPT, reference, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


# -- the judging ------------------------------------------------------------------------------------------------------

NOTHING = StepsHeld(0, ())


def looks_until_lost(*stages: StepsHeld | None, number: int = 7, most: int = 100) -> int | None:
    watch = StepWatch()
    for count in range(most):
        if watch.look(number) and watch.is_lost(stages):
            return count
    return None


def test_a_step_that_no_stage_has_is_lost_after_some_looks() -> None:
    assert looks_until_lost(StepsHeld(7, ()), StepsHeld(6, ())) == LOOKS
    assert looks_until_lost(NOTHING, NOTHING) == LOOKS, "on the way to the first stage"
    assert looks_until_lost(StepsHeld(9, ()), StepsHeld(9, ())) == LOOKS, "on the way to the driver, or overtaken"


def test_a_step_that_a_stage_has_is_not_lost_however_long_it_takes() -> None:
    assert looks_until_lost(StepsHeld(7, ()), StepsHeld(8, (7, 8))) is None
    assert looks_until_lost(None, StepsHeld(7, (7,))) is None, "whatever another one does not say"


def test_a_step_is_lost_where_the_stages_say_nothing_for_long() -> None:
    assert looks_until_lost(None, None) == LOOKS


def test_a_step_that_got_on_between_two_looks_is_looked_for_anew() -> None:
    watch = StepWatch()
    watch.look(7)
    for reached in range(4):
        stages = [StepsHeld(7 if stage < reached else 6, ()) for stage in range(4)]
        for _ in range(LOOKS - 1):
            assert watch.look(7)
            assert not watch.is_lost(stages), "it is on its way to the next stage"
    assert watch.look(7)
    assert watch.is_lost(stages)


def test_steps_that_come_out_are_not_looked_for() -> None:
    watch = StepWatch()
    assert not any(watch.look(number) for number in (None, 1, 2, None, None, 3, 4))
    assert watch.look(4)


def test_looks_at_one_step_say_nothing_of_the_next() -> None:
    watch = StepWatch()
    watch.look(7)
    for _ in range(LOOKS - 1):
        assert watch.look(7)
        assert not watch.is_lost([NOTHING])
    assert not watch.look(8)
    assert watch.look(8)
    assert not watch.is_lost([NOTHING])


# -- a pipeline -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Step, Hidden, Sampled])
async def test_a_text_goes_on_after_a_step_was_dropped_between_two_nodes(
    kind: type[Message], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mailbox that is full drops it: nobody hears of it."""
    monkeypatch.setattr(step_watch, "LOOK_SECONDS", 0.05)
    receiver: type[Actor] = Driver if kind is Sampled else Stage
    receive = receiver.receive
    dropped: list[Message] = []

    async def receive_most(actor: Actor, message: Message) -> Message | None:
        if isinstance(message, kind) and getattr(message, "number") >= 12 and not dropped:  # noqa: B009 - for mypy
            dropped.append(message)
            return None
        return await receive(actor, message)

    monkeypatch.setattr(receiver, "receive", receive_most)
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b), asyncio.timeout(DEADLINE):
        several = [tokens(a, request(max_tokens=60)) for _ in range(3)]
        assert await asyncio.gather(*several) == [reference(tiny, PROMPT, 60)] * 3
        assert len(dropped) == 1
        await eventually(lambda: a.sequences() + b.sequences() == 0)


async def test_a_step_that_waits_for_a_busy_node_is_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_watch, "LOOK_SECONDS", 0.01)
    receive = Stage.receive
    asked = 0

    async def count(stage: Stage, message: Message) -> Message | None:
        nonlocal asked
        asked += isinstance(message, AskSteps)
        return await receive(stage, message)

    monkeypatch.setattr(Stage, "receive", count)
    gate = threading.Event()
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b), asyncio.timeout(DEADLINE):
        whole = asyncio.create_task(tokens(a, request(max_tokens=60)))
        await eventually(lambda: b.stages() and b.stages()[0]._sequences)
        drivers = a.drivers() + b.drivers()
        busy = asyncio.create_task(b.compute.run(lambda: gate.wait(DEADLINE)))
        await eventually(lambda: asked > 20 * LOOKS)
        gate.set()
        assert await whole == reference(tiny, PROMPT, 60)
        assert a.drivers() + b.drivers() == drivers
        assert await busy
