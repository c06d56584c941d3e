"""Nodes that measure themselves and their links before a model is placed, over real sockets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest

from runtime.actors import ActorRef, ActorSystem
from runtime.inference.planning import Measures
from runtime.inference.survey import ECHO_BYTES, Survey, Surveyed, Surveys
from runtime.spi import (
    Checkpoint,
    LayerSeconds,
    Link,
    LoadOptions,
    NodeMemory,
    NodeView,
    PlacementPolicy,
    PlacementRequest,
    Plan,
)
from runtime.testing.models import tiny_llama
from runtime_even.policy import EvenPlacement
from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings
from tests.inference.serving import PROMPT, InferenceNode, reference, request, serving, tokens
from tests.wire.loopback import eventually, log_lines

FLOAT32 = LoadOptions("float32", dequantize=True)


class Weighing(PlacementPolicy):
    """Splits evenly, and keeps what it was told."""

    measures = True

    def __init__(self) -> None:
        self.requests: list[PlacementRequest] = []

    def plan(self, request: PlacementRequest) -> Plan:
        self.requests.append(request)
        return EvenPlacement().plan(request)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", layers=5)


async def test_a_policy_that_weighs_them_is_told_every_nodes_speed_and_every_link(folder: Path, tmp_path: Path) -> None:
    policy = Weighing()
    async with serving("a", "b", "c", folders={"tiny": folder}, policy=policy, probes=tmp_path) as (a, _, _):
        assert len(await tokens(a, request(max_tokens=4))) == 4
    (told,) = policy.requests
    assert told.driver == "a"
    assert told.hidden_bytes == 64 * 4
    assert told.seconds.keys() == {"a", "b", "c"}
    assert all(len(each.decode) == 5 and min(each.decode) > 0 for each in told.seconds.values())
    pairs = {(one, other) for one in "abc" for other in "abc" if one != other}
    assert told.links.keys() == pairs
    for link in told.links.values():
        assert 0 < link.latency < 1
        assert ECHO_BYTES / 10 < link.bandwidth < 1e12


async def test_links_are_measured_by_a_finer_clock_than_the_event_loops(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Weighing()
    async with serving("a", "b", folders={"tiny": folder}, policy=policy, probes=tmp_path) as (a, b):
        for node in (a, b):  # as coarse as can be
            monkeypatch.setattr(node.system, "now", lambda: 0.0)
        await tokens(a, request(max_tokens=2))
    (told,) = policy.requests
    assert told.links.keys() == {("a", "b"), ("b", "a")}
    assert all(0 < link.latency < 1 and link.bandwidth < 1e12 for link in told.links.values())


async def test_a_policy_that_does_not_weigh_them_and_a_node_that_is_alone_are_not_asked(
    folder: Path, tmp_path: Path
) -> None:
    async with serving("a", "b", folders={"tiny": folder}, probes=tmp_path / "probes") as (a, _):
        await tokens(a, request(max_tokens=2))
    policy = Weighing()
    async with serving("a", folders={"tiny": folder}, policy=policy, probes=tmp_path / "probes") as (a,):
        await tokens(a, request(max_tokens=2))
    assert not policy.requests[0].seconds
    assert not (tmp_path / "probes").exists()


async def test_a_node_that_cannot_measure_is_placed_on_all_the_same(folder: Path) -> None:
    policy = Weighing()
    async with serving("a", "b", folders={"tiny": folder}, policy=policy) as (a, b):
        # Neither has a surveyor.
        assert len(await tokens(a, request(max_tokens=4))) == 4
        assert len(b.stages()) == 1
    assert not policy.requests[0].seconds


async def test_the_plan_is_given_back_to_the_policy_when_the_model_is_placed_again(folder: Path) -> None:
    policy = Weighing()
    async with serving("a", "b", folders={"tiny": folder}, policy=policy) as (a, _):
        await tokens(a, request(max_tokens=2))
        await a.engine.unload("tiny")
        await tokens(a, request(max_tokens=2))
    first, second = policy.requests
    assert not first.current
    assert [(stage.node, str(stage.span)) for stage in second.current] == [("a", "0-2 of 5"), ("b", "3-4 of 5")]


# -- minmax, from the measurement to the text --------------------------------------------------------------------------


def holders(nodes: list[InferenceNode]) -> dict[str, int]:
    """Return the number of stages on each node."""
    return {node.name: len(node.stages()) for node in nodes}


async def test_minmax_cuts_for_throughput_what_it_leaves_whole_for_latency(folder: Path, tmp_path: Path) -> None:
    expected = reference(folder, PROMPT, 8)
    for objective, stages in (("latency", 1), ("throughput", 2)):
        # What little a stage takes here must not be outweighed by the hop, which is what makes the difference.
        settings = MinmaxSettings.model_validate({"objective": objective, "tolerance": 0.0, "prompt_ratio": 0.0})
        policy = MinmaxPlacement(settings)
        async with serving("a", "b", folders={"tiny": folder}, policy=policy, probes=tmp_path) as nodes:
            assert await tokens(nodes[0], request(max_tokens=8)) == expected
            assert sum(holders(nodes).values()) == stages


async def test_a_driver_whose_node_holds_no_layers_generates_the_same_text(folder: Path, tmp_path: Path) -> None:
    policy = MinmaxPlacement(MinmaxSettings(pin={"tiny": {"b": "0-1", "c": "2-4"}}))
    async with serving("a", "b", "c", folders={"tiny": folder}, policy=policy, probes=tmp_path) as nodes:
        assert await tokens(nodes[0], request(max_tokens=8)) == reference(folder, PROMPT, 8)
        assert holders(nodes) == {"a": 0, "b": 1, "c": 1}


async def test_a_single_stage_away_from_its_driver_generates_the_same_text(folder: Path, tmp_path: Path) -> None:
    policy = MinmaxPlacement(MinmaxSettings(exclude=("a",)))
    async with serving("a", "b", folders={"tiny": folder}, policy=policy, probes=tmp_path) as nodes:
        assert await tokens(nodes[0], request(max_tokens=8)) == reference(folder, PROMPT, 8)
        assert holders(nodes) == {"a": 0, "b": 1}


async def test_a_node_that_joins_moves_nothing_that_is_served(folder: Path, tmp_path: Path) -> None:
    policy = MinmaxPlacement(MinmaxSettings())
    async with serving("a", folders={"tiny": folder}, policy=policy, probes=tmp_path) as (a,):
        await tokens(a, request(max_tokens=2))
        (stage,) = a.stages()
        await a.network.listen("127.0.0.1", 0)
        b = InferenceNode("b", frozenset({a.address}), {"tiny": folder}, policy=policy, probes=tmp_path)
        try:
            await b.network.listen("127.0.0.1", 0)
            await eventually(lambda: len(a.membership.views()) == len(b.membership.views()) == 2)
            assert await tokens(b, request(max_tokens=8)) == reference(folder, PROMPT, 8)
            assert a.stages() == [stage]
            assert not b.stages()
        finally:
            await b.stop()


async def test_the_links_to_a_driver_that_is_not_to_hold_layers_are_measured_too(folder: Path, tmp_path: Path) -> None:
    async with serving("a", "b", "c", folders={"tiny": folder}, probes=tmp_path) as (a, _, _):
        checkpoint = await a.catalogue.fetch("tiny", lambda progress: None)
        others = tuple(view for view in a.membership.views() if view.name != "a")
        measures = await Surveys(a.system)(checkpoint, FLOAT32, others)
        assert await Surveys(a.system)(checkpoint, FLOAT32, others[:1]) == Measures()
    assert measures.seconds.keys() == {"b", "c"}
    assert measures.links.keys() == {("b", "a"), ("c", "a"), ("b", "c"), ("c", "b")}


class Answering:
    """A system whose every node answers a survey with the same."""

    node = "a"

    def __init__(self, answer: Surveyed) -> None:
        self.answer = answer

    async def ask(self, ref: ActorRef, message: Survey, timeout: float) -> Surveyed:
        return self.answer


TWO = tuple(NodeView(name, NodeMemory(total=1 << 30, available=1 << 30), "cpu", ("dense",)) for name in ("b", "b2"))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 1e308])
async def test_what_a_node_cannot_have_measured_is_not_counted(wrong: float) -> None:
    said = {
        "a": Link(0.001, 1e9),
        "c": Link(wrong, 1e9),
        "d": Link(0.001, math.nan),
        "e": Link(0.001, math.inf),
        "f": Link(0.001, 0.0),
        "g": Link(0.001, -1e9),
        "h": Link(0.001, 1e-300),
    }
    for decode, batched, prefill in ((wrong, 0.01, 0.01), (0.01, wrong, 0.01), (0.01, 0.01, wrong)):
        answer = Surveyed(LayerSeconds((0.01, decode), (0.01, batched), (0.01, prefill)), "", said)
        surveys = Surveys(cast(ActorSystem, Answering(answer)))
        async with log_lines("WARNING") as lines:
            measures = await surveys(Checkpoint(Path(), {}, {}), FLOAT32, TWO)
        assert not measures.seconds
        assert measures.links == {(node.name, "a"): Link(0.001, 1e9) for node in TWO}
        assert len(lines) == 14
        assert sum(line.startswith("b says") for line in lines) == 7
