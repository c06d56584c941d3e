from __future__ import annotations

import msgspec
import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Restart
from runtime.cluster import LEDGER, Commit, Confirm, Ledger, Release, Reserve
from runtime.errors import PlacementRefused
from runtime.spi import NodeMemory
from tests.cluster.nodes import cluster
from tests.wire.loopback import eventually

AT_B = ActorRef("b", LEDGER)


class Driver(Actor):
    """Owns reservations, and fails at whatever it is told."""

    async def receive(self, message: Message) -> None:
        raise RuntimeError("this is a test")


class Drivers(Actor):
    """Starts a driver as a node does: one that fails is not started again."""

    def __init__(self, started: list[ActorRef]) -> None:
        self._started = started

    async def started(self) -> None:
        self._started.append(self.context.spawn(Driver, "1", Restart.TEMPORARY))


class Fail(Message, frozen=True, tag="test.fail"):
    """End a driver."""


async def test_a_driver_reserves_commits_and_releases_memory_on_another_node() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b"))
        owner = a.system.spawn(Driver, "driver")
        grant = await a.system.ask(AT_B, Reserve(model="m", epoch=1, bytes=600, owner=owner), 5)
        with pytest.raises(PlacementRefused, match="a asks for 101 bytes for m, and 100 can be granted"):
            await a.system.ask(AT_B, Reserve(model="m", epoch=1, bytes=101, owner=owner), 5)
        await eventually(lambda: (memory := a.told("b")) and memory.reserved == 600 and memory.grantable == 100)
        await a.system.ask(AT_B, Confirm(grant.reservation), 5)
        await a.system.ask(AT_B, Commit(grant.reservation), 5)
        b.memory, b.held = msgspec.structs.replace(b.memory, available=300), 500
        assert b.ledger.memory().grantable == 100
        b.memory = msgspec.structs.replace(b.memory, available=99)
        with pytest.raises(PlacementRefused, match="100 are promised to models, and there are 99 available"):
            await a.system.ask(AT_B, Confirm(grant.reservation), 5)
        await a.system.ask(AT_B, Release(grant.reservation), 5)
        assert b.ledger.memory().reserved == 0


async def test_memory_is_free_again_when_its_driver_ends() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b"))
        owner = a.system.spawn(Driver, "driver")
        await a.system.ask(AT_B, Reserve(model="m", epoch=1, bytes=600, owner=owner), 5)
        assert len(b.ledger.reservations) == 1
        a.system.stop(owner)
        await eventually(lambda: not len(b.ledger.reservations))


async def test_memory_is_free_again_when_its_driver_crashes() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b"))
        drivers: list[ActorRef] = []
        a.system.spawn(lambda: Drivers(drivers), "drivers")
        await eventually(lambda: bool(drivers))
        (owner,) = drivers
        grant = await a.system.ask(AT_B, Reserve(model="m", epoch=1, bytes=600, owner=owner), 5)
        await a.system.ask(AT_B, Commit(grant.reservation), 5)
        a.system.tell(owner, Fail())
        await eventually(lambda: not len(b.ledger.reservations))
        assert b.ledger.memory().grantable == 700


async def test_memory_is_free_again_when_the_node_of_its_driver_is_lost() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b"))
        owner = a.system.spawn(Driver, "driver")
        await a.system.ask(AT_B, Reserve(model="m", epoch=1, bytes=600, owner=owner), 5)
        a.network.disconnect("b", "the test says so")
        await eventually(lambda: not len(b.ledger.reservations))


async def test_a_reservation_for_a_driver_that_is_already_gone_does_not_stay() -> None:
    system = ActorSystem("a")
    ledger = Ledger(system, lambda: NodeMemory(total=1000, available=800))
    ref = ledger.start()
    await system.ask(ref, Reserve(model="m", epoch=1, bytes=600, owner=ActorRef("a", "/gone", 5)), 5)
    await eventually(lambda: not len(ledger.reservations))
    await system.shut_down(1)


async def test_a_reservation_that_is_never_committed_runs_out() -> None:
    system = ActorSystem("a")
    ledger = Ledger(system, lambda: NodeMemory(total=1000, available=800), uncommitted=0.05)
    ref = ledger.start()
    owner = system.spawn(Driver, "driver")
    grant = await system.ask(ref, Reserve(model="m", epoch=1, bytes=600, owner=owner), 5)
    await eventually(lambda: not len(ledger.reservations))
    with pytest.raises(PlacementRefused, match="reserve again"):
        await system.ask(ref, Commit(grant.reservation), 5)
    await system.shut_down(1)
