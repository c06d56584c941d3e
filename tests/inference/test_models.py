"""Nodes that want a model at about the same time agree on one driver, in any order of events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.actors import Actor, ActorRef, Message
from runtime.errors import PlacementRefused, RuntimeFault
from runtime.inference.models import MODELS, Models
from runtime.inference.protocol import AwaitReady, EnsureModel, Ready
from tests.wire.loopback import Node, eventually, nodes

NAMES = ("a", "b", "c")


class PlainDriver(Actor):
    """Is ready at once, or refuses."""

    def __init__(self, model: str, made: list[str]) -> None:
        made.append(model)
        self._refuses = model.startswith("refused") and len(made) == 1

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, AwaitReady)
        if self._refuses:
            self.context.stop_self()
            raise PlacementRefused("it fits nowhere")
        return Ready(self.context.self_ref, "digest", 64)


@asynccontextmanager
async def cluster() -> AsyncIterator[tuple[list[Node], list[str]]]:
    """Three linked nodes that can serve models; nobody knows what is served but by asking."""
    made: list[str] = []
    async with nodes(*NAMES) as all_nodes:
        for node in all_nodes:
            node.dial(*(other.address for other in all_nodes if other is not node))
            node.system.spawn(
                lambda node=node: Models(  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                    lambda model: PlainDriver(model, made), lambda model: None, node.linked
                ),
                MODELS,
            )
        await eventually(lambda: all(len(node.linked()) == 2 for node in all_nodes))
        yield all_nodes, made


async def ensure(node: Node, model: str, turns: int = 0) -> ActorRef:
    for _ in range(turns):
        await asyncio.sleep(0)
    ready = await node.system.ask(ActorRef(node.name, f"/{MODELS}"), EnsureModel(model, None), 10)
    return ready.driver


async def test_whoever_asks_and_whenever_there_is_one_driver() -> None:
    chance = random.Random(4)  # noqa: S311 - chance, not a secret
    async with cluster() as (all_nodes, made):
        for number in range(150):
            model = f"model {number}"
            asking = [ensure(node, model, chance.randrange(30)) for node in all_nodes for _ in range(2)]
            chance.shuffle(asking)
            drivers = await asyncio.gather(*asking)
            assert len(set(drivers)) == 1, (number, drivers)
            assert made.count(model) == 1


async def test_what_is_served_is_found_by_asking_the_peers() -> None:
    async with cluster() as ((a, b, c), _):
        driver = await ensure(b, "model")
        assert driver.node == "b"
        assert await ensure(a, "model") == await ensure(c, "model") == driver


async def test_a_driver_that_is_gone_is_replaced() -> None:
    async with cluster() as ((a, b, _), made):
        first = await ensure(b, "model")
        b.system.stop(first)
        second = await ensure(a, "model")
        assert second != first
        assert made == ["model", "model"]


async def test_a_refusal_reaches_who_asked_on_whichever_node_and_is_not_kept() -> None:
    async with cluster() as ((a, b, _), made):
        with pytest.raises(PlacementRefused, match="fits nowhere"):
            await ensure(b, "refused")
        assert made == ["refused"]
        assert (await ensure(a, "refused")).node in NAMES


async def test_a_peer_that_cannot_be_asked_does_not_stop_the_others() -> None:
    async with cluster() as ((a, b, c), _):
        c.system.stop(ActorRef("c", f"/{MODELS}"))
        assert (await ensure(a, "model")).node == "a"
        with pytest.raises(RuntimeFault):
            await ensure(c, "model")
        assert (await ensure(b, "model")).node == "a"
