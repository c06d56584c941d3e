"""Placement by minmax moves nothing without a gain that is worth it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from runtime.spi import LayerSpan, PlacementRequest, StagePlan
from tests.plugins.minmax_brute_force import bottleneck, latency, weighed
from tests.plugins.minmax_cases import a_node, a_request, found, links, placed, reason, requests, steady, three


@settings(max_examples=100)
@given(case=requests(nodes=3), objective=st.sampled_from(["latency", "throughput"]))
def test_a_further_node_moves_nothing_unless_it_makes_the_model_faster(
    case: tuple[PlacementRequest, dict[str, Any]], objective: str
) -> None:
    request, configured = case
    before = found(request, objective, configured)
    if before is None:
        return
    ratio = configured["prompt_ratio"]
    cost = latency if objective == "latency" else bottleneck
    newcomer = "n1a"  # by name between the others
    seconds = {**request.seconds, newcomer: steady(request.layers, 3)}
    current = tuple(StagePlan(name, LayerSpan(start, stop, request.layers), 0) for name, start, stop in before)
    wider = structs.replace(request, nodes=(*request.nodes, a_node(newcomer, 100)), seconds=seconds, current=current)
    after = found(wider, objective, {**configured, "tolerance": 0.0})
    assert after is not None
    if newcomer not in {name for name, _, _ in after}:
        assert after == before
    else:
        wider = weighed(wider, objective)
        assert cost(wider, after, ratio) < cost(wider, before, ratio)


@pytest.mark.parametrize("many", [2, 12])
def test_a_node_that_helps_nobody_changes_no_plan_even_without_a_current_one(many: int) -> None:
    names = [f"n{index:02}" for index in range(many)]
    known = {name: steady(8, 1 + index) for index, name in enumerate(names)}
    nodes = tuple(a_node(name, 60) for name in names)
    for useless in (a_node("n00a", 0), a_node("n00a", 1000, families=())):
        alone = a_request(8, nodes, seconds=known, links=links(0.001, *names))
        beside = structs.replace(alone, nodes=(*nodes, useless))
        assert placed(beside) == placed(alone)


def test_layers_stay_where_they_are_for_a_gain_that_is_not_worth_it_and_move_for_one_that_is() -> None:
    current = (StagePlan("b", LayerSpan(0, 6, 6), 0),)

    def speeds(a: float) -> PlacementRequest:
        request = structs.replace(three(), current=current)
        return structs.replace(request, seconds={"a": steady(6, a), "b": steady(6, 2), "c": steady(6, 3)})

    assert placed(speeds(1.9)) == (("b", 0, 6),)
    assert "they stay where they are" in reason(speeds(1.9))
    assert placed(speeds(1.9), tolerance=0.0) == (("a", 0, 6),)
    assert placed(speeds(1.0)) == (("a", 0, 6),)
    assert placed(speeds(1.9), exclude=("b",)) == (("a", 0, 6),)
