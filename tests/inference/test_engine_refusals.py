"""What cannot be served is refused with the reason, and nothing stays reserved."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import InvalidRequest, ModelError, ModelNotFound, PlacementRefused, RuntimeFault
from runtime.spi import PlacementRequest, Plan
from tests.inference.serving import PROMPT, Scripted, events, plan_of, reference, request, serving, tokens
from tests.wire.loopback import eventually


async def test_an_unknown_model_is_not_found_and_nothing_stays(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(ModelNotFound, match="did you mean tiny"):
            await events(a, request("tini"))
        await eventually(lambda: not a.drivers())


async def test_senseless_settings_are_refused_before_anything_is_loaded(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await events(a, request(max_tokens=0))
        assert not a.drivers()


async def test_a_model_that_does_not_fit_leaves_nothing_reserved(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        plenty, b.memory = b.memory, b.memory.__class__(total=1000, available=1000)
        await eventually(lambda: (told := a.told("b")) is not None and told.available <= 1000)
        with pytest.raises(PlacementRefused, match="does not fit"):
            await a.engine.load("tiny")
        await eventually(lambda: not a.drivers())
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)
        b.memory = plenty
        await eventually(lambda: (told := a.told("b")) is not None and told.available > 1000)
        assert len(await tokens(a, request())) == 16


async def test_a_ledger_that_refuses_leaves_nothing_reserved_elsewhere(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        plenty, b.memory = b.memory, b.memory.__class__(total=1000, available=1000)
        # Before b tells of it.
        with pytest.raises(PlacementRefused, match="can be granted"):
            await a.engine.load("tiny")
        await eventually(lambda: not len(a.ledger.reservations) and not len(b.ledger.reservations))
        b.memory = plenty


@pytest.mark.parametrize("spans", [(), ((0, 2),), ((0, 2), (3, 4)), ((2, 4), (0, 2)), ((0, 3), (2, 4)), ((1, 4),)])
async def test_a_plan_that_does_not_cover_every_layer_once_is_refused(
    spans: tuple[tuple[int, int], ...], tiny: Path
) -> None:
    policy = Scripted(lambda request: plan_of(*spans))
    async with serving("a", folders={"tiny": tiny}, policy=policy) as (a,):
        with pytest.raises(PlacementRefused, match="are not the 4 layers"):
            await a.engine.load("tiny")
        await eventually(lambda: not len(a.ledger.reservations))


async def test_a_plan_with_a_node_that_is_not_there_is_refused(tiny: Path) -> None:
    policy = Scripted(lambda request: plan_of((0, 4), node="nowhere"))
    async with serving("a", folders={"tiny": tiny}, policy=policy) as (a,):
        with pytest.raises(RuntimeFault, match="nowhere"):
            await a.engine.load("tiny")


async def test_a_policy_that_breaks_is_named_and_the_node_goes_on(tiny: Path) -> None:
    broken = True

    def plan(request: PlacementRequest) -> Plan:
        if broken:
            raise KeyError("no such node")
        return plan_of((0, 2), (2, 4))

    async with serving("a", folders={"tiny": tiny}, policy=Scripted(plan)) as (a,):
        with pytest.raises(ModelError, match="placing tiny failed: KeyError"):
            await a.engine.load("tiny")
        broken = False
        assert await tokens(a, request()) == reference(tiny, PROMPT, 16)
