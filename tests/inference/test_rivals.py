"""Two drivers of one model end as one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from runtime.actors import ActorRef
from runtime.cluster import ServedModel, ServedStage, ServedState
from runtime.inference.rivals import giving_way
from runtime.spi import Delta, Finished, LayerSpan
from runtime.testing.models import tiny_llama
from tests.inference.serving import PROMPT, InferenceNode, reference, request, serving, tokens
from tests.wire.loopback import eventually

LONG = 400


def entry(node: str, stages: int = 1, state: ServedState = ServedState.READY, model: str = "m") -> ServedModel:
    held = tuple(ServedStage(f"{node}{number}", LayerSpan(0, 1, 1), 1) for number in range(stages))
    return ServedModel(model, "d", ActorRef(node, "/models/1"), held, 512, None, 0, state)


@pytest.mark.parametrize(
    ("entries", "loser"),
    [
        ([entry("a"), entry("b")], "b"),
        ([entry("a"), entry("b", stages=2)], "a"),
        ([entry("a"), entry("b", state=ServedState.UNLOADING)], None),
        ([entry("a"), entry("b", model="other")], None),
        ([entry("a")], None),
    ],
)
def test_the_driver_with_fewer_stages_gives_way_to_the_other(entries: list[ServedModel], loser: str | None) -> None:
    found = [each.driver.node for node in "ab" for each, _ in giving_way(entries, node)]
    assert found == ([] if loser is None else [loser])


async def test_after_a_split_one_driver_is_left_and_streams_on_both_sides_are_whole(tmp_path: Path) -> None:
    tiny = tiny_llama(tmp_path / "tiny")
    whole = reference(tiny, PROMPT, LONG)
    async with serving("a", folders={"tiny": tiny}) as (a,), serving("b", folders={"tiny": tiny}) as (b,):
        # Each a cluster of its own, which serves the model.
        await asyncio.gather(a.engine.load("tiny"), b.engine.load("tiny"))

        async def read(node: InferenceNode) -> list[int]:
            heard: list[int] = []
            async with contextlib.aclosing(node.engine.generate(request(max_tokens=LONG))) as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        heard += [token.token.id for token in event.tokens]
                        begun[node.name].set()
                    last = event
            assert isinstance(last, Finished)
            return heard

        begun = {"a": asyncio.Event(), "b": asyncio.Event()}
        streams = [asyncio.create_task(read(node)) for node in (a, b)]
        await asyncio.gather(*(event.wait() for event in begun.values()))
        # The parts are joined.
        address = await a.network.listen("127.0.0.1", 0)
        await b.network.listen("127.0.0.1", 0)
        b.network.dial(frozenset({address}))
        assert await asyncio.gather(*streams) == [whole, whole]
        await eventually(lambda: not b.drivers() and not b.stages())
        assert len(a.drivers()) == 1
        assert await tokens(b, request(max_tokens=16)) == whole[:16]
        assert not b.drivers()
        assert len(await b.engine.loaded()) == 1
