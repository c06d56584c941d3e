from __future__ import annotations

import asyncio

from runtime.actors import ActorRef
from runtime.cluster import REGISTRY, ServedModel, ServedStage
from runtime.cluster.registry import RegistryUpdate
from runtime.spi import LayerSpan
from tests.cluster.nodes import ClusterNode, Seeds, cluster
from tests.wire.loopback import DEADLINE, eventually


def served(node: ClusterNode, model: str = "m", active: int = 0) -> ServedModel:
    driver = ActorRef(node.name, f"/models/{model}", 3)
    return ServedModel(model, "sha", driver, (ServedStage(node.name, LayerSpan(0, 2, 4), 99),), 2048, 1.5, active)


async def test_what_a_node_serves_is_known_to_every_node_until_it_serves_it_no_more() -> None:
    async with cluster("a", "b", "c") as (a, b, c):
        await eventually(lambda: c.linked() == ["a", "b"])
        change = asyncio.create_task(c.registry.changes.after(c.registry.changes.count))
        a.registry.publish(served(a))
        await asyncio.wait_for(change, DEADLINE)
        assert c.registry.lookup("m") == served(a)
        await eventually(lambda: b.registry.entries() == (served(a),))
        a.registry.publish(served(a, active=3))
        await eventually(lambda: b.registry.lookup("m") == served(a, active=3))
        a.registry.withdraw("m")
        await eventually(lambda: not b.registry.entries() and not c.registry.entries())


async def test_a_node_that_joins_later_learns_what_is_served() -> None:
    async with cluster("a") as (a,):
        a.registry.publish(served(a))
        late = ClusterNode("late", Seeds(frozenset({a.address})))
        try:
            await eventually(lambda: late.registry.lookup("m") == served(a))
        finally:
            await late.stop()


async def test_the_entries_of_a_lost_node_vanish_and_a_late_update_does_not_bring_them_back() -> None:
    async with cluster("a", "b") as (a, b):
        b.registry.publish(served(b))
        await eventually(lambda: a.registry.lookup("m"))
        await b.stop()
        await eventually(lambda: not a.registry.entries())
        a.system.tell(ActorRef("a", REGISTRY), RegistryUpdate("b", b.system.boot, 99, (served(b),)))
        a.system.tell(ActorRef("a", REGISTRY), RegistryUpdate("b", b.system.boot + 1, 99, (served(b),)))
        handled = a.system._cells[REGISTRY]
        await eventually(lambda: not len(handled.mailbox))
        assert a.registry.entries() == ()
