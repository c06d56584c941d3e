"""The even split, and its refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, MemoryEstimate, NodeMemory, NodeView, Part, PlacementRequest
from runtime.spi.memory import KV_CACHE
from runtime_even.policy import EvenPlacement, even_spans

MIB = 1 << 20


def _node(name: str, mebibytes: int, reserve: int = 0, families: tuple[str, ...] = ("dense",)) -> NodeView:
    memory = NodeMemory(total=mebibytes * MIB, available=mebibytes * MIB, reserve=reserve * MIB)
    return NodeView(name=name, memory=memory, backend="cpu", families=families)


def _per_layer(weights: int, cache: int = 0) -> Callable[[LayerSpan], MemoryEstimate]:
    """Every layer needs so many MiB."""
    return lambda span: MemoryEstimate(
        (Part("weights", len(span) * weights * MIB), Part(KV_CACHE, len(span) * cache * MIB))
    )


def _request(layers: int, nodes: tuple[NodeView, ...], weights: int = 1, cache: int = 0) -> PlacementRequest:
    return PlacementRequest(model="m", layers=layers, nodes=nodes, estimate=_per_layer(weights, cache))


@given(layers=st.integers(1, 200), nodes=st.integers(1, 50))
def test_spans_cover_every_layer_once_and_differ_by_one_at_most(layers: int, nodes: int) -> None:
    spans = even_spans(layers, nodes)
    assert [layer for span in spans for layer in range(span.start, span.stop)] == list(range(layers))
    lengths = [len(span) for span in spans]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    assert len(spans) == min(layers, nodes)


@given(
    layers=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    weights=st.integers(1, 3),
    cache=st.integers(0, 3),
)
def test_a_plan_fits_every_node_and_a_refusal_means_that_one_does_not(
    layers: int, sizes: list[int], weights: int, cache: int
) -> None:
    nodes = tuple(_node(f"n{index}", size) for index, size in enumerate(sizes))
    request = _request(layers, nodes, weights, cache)
    needs = [request.estimate(span).total for span in even_spans(layers, len(nodes))]
    fits = all(need <= node.memory.grantable for need, node in zip(needs, nodes, strict=False))
    if not fits:
        with pytest.raises(PlacementRefused, match="lacks memory for an even split"):
            EvenPlacement().plan(request)
        return
    plan = EvenPlacement().plan(request)
    assert [stage.node for stage in plan.stages] == [node.name for node in nodes[: len(plan.stages)]]
    assert [stage.bytes for stage in plan.stages] == needs


def test_the_first_node_holds_the_first_layers_and_one_more() -> None:
    plan = EvenPlacement().plan(_request(5, (_node("a", 100), _node("b", 100))))
    assert [(stage.node, str(stage.span)) for stage in plan.stages] == [("a", "0-2 of 5"), ("b", "3-4 of 5")]
    assert plan.reason == "5 layers split evenly: a 3, b 2"


def test_nodes_without_layers_are_left_out_and_named() -> None:
    plan = EvenPlacement().plan(_request(1, (_node("a", 100), _node("b", 100))))
    assert [stage.node for stage in plan.stages] == ["a"]
    assert "no layers are left for b" in plan.reason


def test_nodes_that_run_no_family_are_left_out_and_named() -> None:
    plan = EvenPlacement().plan(_request(4, (_node("a", 100), _node("b", 100, families=()), _node("c", 100))))
    assert [(stage.node, str(stage.span)) for stage in plan.stages] == [("a", "0-1 of 4"), ("c", "2-3 of 4")]
    assert "no model family runs on b" in plan.reason
    with pytest.raises(PlacementRefused, match="no model family runs on b"):
        EvenPlacement().plan(_request(4, (_node("b", 100, families=()),)))


def test_what_a_node_keeps_for_itself_is_not_given_away() -> None:
    with pytest.raises(PlacementRefused):
        EvenPlacement().plan(_request(10, (_node("a", 12, reserve=3),)))


def test_a_refusal_shows_what_each_slice_needs_and_what_each_node_has() -> None:
    with pytest.raises(PlacementRefused) as refusal:
        EvenPlacement().plan(_request(20, (_node("studio", 500), _node("mini", 90, reserve=10)), weights=10))
    text = refusal.value.message
    assert "m does not fit: mini lacks memory" in text
    assert "layers 10-19 of 20  100 MiB  weights 100 MiB" in text
    assert "mini    80 MiB     90 MiB     10 MiB   20 MiB" in text


def test_no_node_at_all_is_refused() -> None:
    with pytest.raises(PlacementRefused, match="no node is up"):
        EvenPlacement().plan(_request(4, ()))
