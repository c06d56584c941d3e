"""The split by free memory, and its refusal."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, MemoryEstimate, NodeMemory, NodeView, Part, PlacementRequest
from runtime_proportional.policy import ProportionalPlacement, shares

MIB = 1 << 20


def a_node(name: str, mebibytes: int, families: tuple[str, ...] = ("dense",)) -> NodeView:
    memory = NodeMemory(total=mebibytes * MIB, available=mebibytes * MIB)
    return NodeView(name=name, memory=memory, backend="cpu", families=families)


def a_request(layers: int, *nodes: NodeView) -> PlacementRequest:
    """A layer needs one MiB."""

    def estimate(span: LayerSpan) -> MemoryEstimate:
        return MemoryEstimate((Part("weights", len(span) * MIB),))

    return PlacementRequest(model="m", layers=layers, nodes=nodes, estimate=estimate)


@given(layers=st.integers(1, 300), weights=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_shares_cover_every_layer_once_and_are_within_one_of_the_exact_ones(layers: int, weights: list[int]) -> None:
    cuts = shares(layers, weights)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, layers, len(weights) + 1)
    held = [stop - start for start, stop in pairwise(cuts)]
    assert min(held) >= 0
    if sum(weights):
        exact = [layers * weight / sum(weights) for weight in weights]
        assert all(abs(one - other) <= 1 + 1e-9 for one, other in zip(held, exact, strict=True))


def test_who_has_more_memory_gets_more_layers_and_who_has_next_to_none_gets_none() -> None:
    nodes = (a_node("a", 100), a_node("b", 300), a_node("full", 2), a_node("bare", 500, families=()))
    plan = ProportionalPlacement().plan(a_request(20, *nodes))
    assert [(stage.node, str(stage.span), stage.bytes) for stage in plan.stages] == [
        ("a", "0-4 of 20", 5 * MIB),
        ("b", "5-19 of 20", 15 * MIB),
    ]
    assert plan.reason == "20 layers split by free memory: a 5, b 15; no model family runs on bare"


def test_a_share_that_does_not_fit_is_refused_with_both_tables() -> None:
    with pytest.raises(PlacementRefused) as refusal:
        ProportionalPlacement().plan(a_request(100, a_node("a", 30), a_node("b", 60)))
    text = refusal.value.message
    assert "m does not fit: a, b lacks memory for its share" in text
    assert "layers 0-32 of 100   33 MiB  weights 33 MiB" in text
    assert "b     60 MiB     60 MiB     0 MiB    7 MiB" in text
