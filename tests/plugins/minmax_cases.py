"""Clusters and models to place, and what the policy makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

from hypothesis import strategies as st

from runtime.errors import PlacementRefused
from runtime.spi import LayerSeconds, LayerSpan, Link, MemoryEstimate, NodeMemory, NodeView, Part, PlacementRequest
from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings

MIB = 1 << 20
MS = 0.001
Cut = tuple[tuple[str, int, int], ...]
"""Stages: a node, its first layer, and the one after its last."""


def a_node(name: str, mebibytes: int = 1000, families: tuple[str, ...] = ("dense",), backend: str = "cpu") -> NodeView:
    memory = NodeMemory(total=mebibytes * MIB, available=mebibytes * MIB)
    return NodeView(name=name, memory=memory, backend=backend, families=families)


def steady(layers: int, milliseconds: float) -> LayerSeconds:
    return LayerSeconds((milliseconds * MS,) * layers, (milliseconds * MS,) * layers, (0.0,) * layers)


def a_request(layers: int, nodes: tuple[NodeView, ...], **known: Any) -> PlacementRequest:
    """A layer needs 10 MiB, a stage 5 more, the head another 20."""

    def estimate(span: LayerSpan) -> MemoryEstimate:
        return MemoryEstimate(
            (
                Part("weights", len(span) * 10 * MIB),
                Part("logits", 20 * MIB if span.is_last else 0),
                Part("overhead", 5 * MIB),
            )
        )

    return PlacementRequest(model="m", layers=layers, nodes=nodes, estimate=estimate, **known)


def links(latency: float, *names: str, bandwidth: float = 1e9) -> dict[tuple[str, str], Link]:
    return {pair: Link(latency, bandwidth) for pair in permutations(names, 2)}


def three(layers: int = 6) -> PlacementRequest:
    """Three nodes, the first the fastest."""
    return a_request(
        layers,
        (a_node("a"), a_node("b"), a_node("c")),
        seconds={"a": steady(layers, 1), "b": steady(layers, 2), "c": steady(layers, 3)},
        links=links(0.0001, "a", "b", "c"),
    )


def placed(request: PlacementRequest, **configured: Any) -> Cut:
    plan = MinmaxPlacement(MinmaxSettings(**configured)).plan(request)
    return tuple((stage.node, stage.span.start, stage.span.stop) for stage in plan.stages)


def reason(request: PlacementRequest, **configured: Any) -> str:
    return MinmaxPlacement(MinmaxSettings(**configured)).plan(request).reason


@st.composite
def requests(draw: st.DrawFn, nodes: int = 4) -> tuple[PlacementRequest, dict[str, Any]]:
    layers = draw(st.integers(1, 6))
    names = [f"n{index}" for index in range(draw(st.integers(1, nodes)))]
    views = tuple(a_node(name, draw(st.integers(0, 100))) for name in names)
    # No times that vanish beside others in a sum: what is best would be a matter of rounding.
    times = st.just(0.0) | st.floats(1e-6, 0.01)
    seconds = {
        name: LayerSeconds(*(tuple(draw(st.lists(times, min_size=layers, max_size=layers))) for _ in range(3)))
        for name in names
    }
    measured = draw(st.sets(st.sampled_from(list(permutations(names, 2))))) if len(names) > 1 else set()
    bandwidths = st.sampled_from([1e5, 1e6, 1e7, 1e9])
    ways = {pair: Link(draw(times), draw(bandwidths)) for pair in sorted(measured)}
    configured: dict[str, Any] = {"prompt_ratio": draw(st.sampled_from([0.0, 2.0]))}
    if draw(st.booleans()):
        configured["max_layers"] = {draw(st.sampled_from(names)): draw(st.integers(0, layers))}
    if draw(st.booleans()):
        first = draw(st.integers(0, layers - 1))
        last = draw(st.integers(first, layers - 1))
        configured["pin"] = {"m": {draw(st.sampled_from(names)): f"{first}-{last}"}}
    request = a_request(layers, views, seconds=seconds, links=ways, hidden_bytes=draw(st.sampled_from([0, 4096])))
    return request, configured


def found(request: PlacementRequest, objective: str, configured: Mapping[str, Any]) -> Cut | None:
    try:
        return placed(request, objective=objective, **configured)
    except PlacementRefused:
        return None
