"""Placement by minmax: the best of all plans by brute force, what the user wants, stability, reasons and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from pydantic import ValidationError

from runtime.config.load import load_settings
from runtime.errors import ConfigError, PlacementRefused
from runtime.spi import (
    LayerSeconds,
    LayerSpan,
    Link,
    MemoryEstimate,
    NodeMemory,
    NodeView,
    Part,
    PlacementRequest,
    StagePlan,
)
from runtime_minmax import search
from runtime_minmax.costs import UNMEASURED_LINK
from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings, pinned_layers

MIB = 1 << 20
MS = 0.001

Cut = tuple[tuple[str, int, int], ...]
"""Stages: a node, its first layer, and the one after its last."""


def a_node(name: str, mebibytes: int = 1000, families: tuple[str, ...] = ("dense",), backend: str = "cpu") -> NodeView:
    memory = NodeMemory(total=mebibytes * MIB, available=mebibytes * MIB)
    return NodeView(name=name, memory=memory, backend=backend, families=families)


def steady(layers: int, milliseconds: float) -> LayerSeconds:
    return LayerSeconds((milliseconds * MS,) * layers, (0.0,) * layers)


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


def placed(request: PlacementRequest, **configured: Any) -> Cut:
    plan = MinmaxPlacement(MinmaxSettings(**configured)).plan(request)
    return tuple((stage.node, stage.span.start, stage.span.stop) for stage in plan.stages)


def reason(request: PlacementRequest, **configured: Any) -> str:
    return MinmaxPlacement(MinmaxSettings(**configured)).plan(request).reason


# -- brute force ------------------------------------------------------------------------------------------------------


def every_cut(request: PlacementRequest, configured: MinmaxSettings, *, any_order: bool) -> Iterator[Cut]:
    """Every plan that memory and settings permit."""
    names = [node.name for node in request.nodes]
    orders = permutations if any_order else combinations
    for stages in range(1, len(names) + 1):
        for order in orders(names, stages):
            for inner in combinations(range(1, request.layers), stages - 1):
                bounds = pairwise((0, *inner, request.layers))
                cut = tuple((name, start, stop) for name, (start, stop) in zip(order, bounds, strict=True))
                if permitted(request, configured, cut):
                    yield cut


def permitted(request: PlacementRequest, configured: MinmaxSettings, cut: Cut) -> bool:
    grantable = {node.name: node.memory.grantable for node in request.nodes}
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    return (
        all(request.estimate(LayerSpan(a, b, request.layers)).total <= grantable[name] for name, a, b in cut)
        and all(b - a <= configured.max_layers.get(name, request.layers) for name, a, b in cut)
        and all(
            holder[layer] == name
            for name, text in configured.pin.get(request.model, {}).items()
            for layer in range(*pinned_layers(text))
        )
    )


def way(request: PlacementRequest, sender: str, receiver: str) -> Link:
    if sender == receiver:
        return Link(0.0, float("inf"))
    return request.links.get((sender, receiver)) or request.links.get((receiver, sender)) or UNMEASURED_LINK


def busy(request: PlacementRequest, name: str, start: int, stop: int, ratio: float) -> float:
    seconds = request.seconds[name]
    return sum(seconds.decode[start:stop]) + ratio * sum(seconds.prefill[start:stop])


def latency(request: PlacementRequest, cut: Cut, ratio: float) -> float:
    total = sum(busy(request, *stage, ratio) for stage in cut)
    for (before, _, _), (after, _, _) in pairwise(cut):
        link = way(request, before, after)
        total += link.latency + request.hidden_bytes * (1 + ratio) / link.bandwidth
    driver = request.nodes[0].name
    return total + way(request, driver, cut[0][0]).latency + way(request, cut[-1][0], driver).latency


def bottleneck(request: PlacementRequest, cut: Cut, ratio: float) -> float:
    most = max(busy(request, *stage, ratio) for stage in cut)
    if len(cut) > 1:
        for name, _, _ in cut:
            others = (node.name for node in request.nodes if node.name != name)
            ways = [way(request, name, other) for other in others]
            known = [link.bandwidth for link in ways if link is not UNMEASURED_LINK]
            fastest = max(known, default=UNMEASURED_LINK.bandwidth)
            most = max(most, request.hidden_bytes * (1 + ratio) / fastest)
    return most


@st.composite
def requests(draw: st.DrawFn, nodes: int = 4) -> tuple[PlacementRequest, dict[str, Any]]:
    layers = draw(st.integers(1, 6))
    names = [f"n{index}" for index in range(draw(st.integers(1, nodes)))]
    views = tuple(a_node(name, draw(st.integers(0, 100))) for name in names)
    # No times that vanish beside others in a sum: what is best would be a matter of rounding.
    times = st.just(0.0) | st.floats(1e-6, 0.01)
    seconds = {
        name: LayerSeconds(
            tuple(draw(st.lists(times, min_size=layers, max_size=layers))),
            tuple(draw(st.lists(times, min_size=layers, max_size=layers))),
        )
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


@settings(max_examples=150)
@given(case=requests(), objective=st.sampled_from(["latency", "throughput"]))
def test_no_plan_in_any_order_is_better(case: tuple[PlacementRequest, dict[str, Any]], objective: str) -> None:
    request, configured = case
    check(request, objective, configured, list(every_cut(request, MinmaxSettings(**configured), any_order=True)))


@settings(max_examples=100)
@given(case=requests(nodes=5), objective=st.sampled_from(["latency", "throughput"]))
def test_with_more_nodes_no_plan_in_the_order_of_the_nodes_is_better(
    case: tuple[PlacementRequest, dict[str, Any]], objective: str
) -> None:
    request, configured = case
    # As if every order were too many for any number of nodes; without links to n0 the order is that of the names.
    ways = {pair: link for pair, link in request.links.items() if pair[0] != "n0"}
    request = structs.replace(request, links=ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "EVERY_ORDER_NODES", 0)
        check(request, objective, configured, list(every_cut(request, MinmaxSettings(**configured), any_order=False)))


def check(request: PlacementRequest, objective: str, configured: dict[str, Any], cuts: list[Cut]) -> None:
    """Compare what the policy finds with the best of all plans there are."""
    best = found(request, objective, configured)
    ratio = configured["prompt_ratio"]
    assert (best is None) == (not cuts)
    if best is None:
        return
    assert permitted(request, MinmaxSettings(**configured), best)
    if objective == "throughput":
        least = min(bottleneck(request, cut, ratio) for cut in cuts)
        assert bottleneck(request, best, ratio) == pytest.approx(least, rel=1e-9, abs=1e-12)
        cuts = [cut for cut in cuts if bottleneck(request, cut, ratio) <= least]
        if not cuts:  # the sums were rounded otherwise here
            return
        assert latency(request, best, ratio) <= min(latency(request, cut, ratio) for cut in cuts) + 1e-9
        return
    least = min(latency(request, cut, ratio) for cut in cuts)
    assert latency(request, best, ratio) == pytest.approx(least, rel=1e-9, abs=1e-12)


# -- what is weighed --------------------------------------------------------------------------------------------------


def test_one_stream_is_fastest_on_the_fastest_node_alone_and_the_rest_is_said() -> None:
    request = a_request(
        10,
        (a_node("slow"), a_node("fast")),
        seconds={"slow": steady(10, 4), "fast": steady(10, 1)},
        links=links(0.001, "slow", "fast"),
    )
    assert placed(request) == (("fast", 0, 10),)
    said = reason(request)
    assert "10 layers cut for latency: fast 10; 12 ms a token" in said
    assert "slow is left out: with it a token would take 15 ms instead" in said


def test_many_streams_are_shared_out_by_speed() -> None:
    request = a_request(
        12,
        (a_node("slow"), a_node("fast")),
        seconds={"slow": steady(12, 2), "fast": steady(12, 1)},
        links=links(0.0001, "slow", "fast"),
    )
    assert {name: stop - start for name, start, stop in placed(request, objective="throughput")} == {
        "slow": 4,
        "fast": 8,
    }
    assert "the busiest stage takes 8 ms" in reason(request, objective="throughput")


def test_memory_forces_a_cut_and_only_as_much_of_one_as_it_must() -> None:
    # The fast node holds six layers without the head, or four with it.
    request = a_request(
        10,
        (a_node("slow"), a_node("fast", 65)),
        seconds={"slow": steady(10, 4), "fast": steady(10, 1)},
        links=links(0.0001, "slow", "fast"),
    )
    assert placed(request) == (("fast", 0, 6), ("slow", 6, 10))


def test_a_node_behind_a_slow_link_is_dropped_for_a_slower_one_that_is_near() -> None:
    near, far = links(0.0001, "here", "near"), links(0.1, "here", "far")
    request = a_request(
        8,
        (a_node("here", 45), a_node("near"), a_node("far")),
        seconds={"here": steady(8, 1), "near": steady(8, 2), "far": steady(8, 1)},
        links={**near, **far, **links(0.1, "near", "far")},
    )
    assert "far" not in {name for name, _, _ in placed(request)}
    assert "far is left out" in reason(request)


def test_throughput_drops_a_node_whose_line_would_be_the_bottleneck() -> None:
    ways = {
        **links(0.0001, "a", "b"),
        **links(0.0001, "a", "c", bandwidth=1e5),
        **links(0.0001, "b", "c", bandwidth=1e5),
    }
    request = a_request(
        9,
        (a_node("a"), a_node("b"), a_node("c")),
        seconds={name: steady(9, 1) for name in "abc"},
        links=ways,
        hidden_bytes=8192,
    )
    assert {name for name, _, _ in placed(request, objective="throughput")} == {"a", "b"}


def test_prompt_tokens_count_by_their_ratio() -> None:
    request = a_request(
        4,
        (a_node("reads"), a_node("writes")),
        seconds={
            "reads": LayerSeconds((2 * MS,) * 4, (0.1 * MS,) * 4),
            "writes": LayerSeconds((1 * MS,) * 4, (1 * MS,) * 4),
        },
        links=links(0.0, "reads", "writes"),
    )
    assert placed(request, prompt_ratio=0) == (("writes", 0, 4),)
    assert placed(request, prompt_ratio=10) == (("reads", 0, 4),)


def test_a_node_that_has_not_measured_counts_as_the_slowest_of_its_kind() -> None:
    nodes = (a_node("unknown"), a_node("metal", backend="metal"), a_node("cpu"))
    request = a_request(
        4, nodes, seconds={"metal": steady(4, 1), "cpu": steady(4, 5)}, links=links(0.0, "unknown", "metal", "cpu")
    )
    assert placed(request) == (("metal", 0, 4),)
    assert "taken to be as slow as the slowest: unknown" in reason(request)
    assert "no node's speed is measured" in reason(a_request(4, nodes))


def test_a_measurement_of_another_number_of_layers_is_not_believed() -> None:
    request = a_request(4, (a_node("a"), a_node("b")), seconds={"b": steady(3, 0.001), "a": steady(4, 1)})
    assert placed(request) == (("a", 0, 4),)


def test_more_nodes_than_are_tried_in_every_order_still_share_by_speed() -> None:
    names = [f"n{index:02}" for index in range(12)]
    request = a_request(
        24,
        tuple(a_node(name) for name in names),
        seconds={name: steady(24, 1) for name in names},
        links=links(0.0, *names),
    )
    assert [stop - start for _, start, stop in placed(request, objective="throughput")] == [2] * 12


# -- what the user wants ----------------------------------------------------------------------------------------------


def three(layers: int = 6) -> PlacementRequest:
    """Three nodes, the first the fastest."""
    return a_request(
        layers,
        (a_node("a"), a_node("b"), a_node("c")),
        seconds={"a": steady(layers, 1), "b": steady(layers, 2), "c": steady(layers, 3)},
        links=links(0.0001, "a", "b", "c"),
    )


def test_an_excluded_node_gets_nothing_and_the_reason_says_so() -> None:
    assert placed(three(), exclude=("a",)) == (("b", 0, 6),)
    assert "plugins.minmax.exclude leaves out a" in reason(three(), exclude=("a",))
    with pytest.raises(PlacementRefused, match="exclude leaves out a, b, c, and nobody else is up"):
        placed(three(), exclude=("a", "b", "c"))


def test_a_model_is_placed_among_its_own_nodes() -> None:
    assert placed(three(), only={"m": ("c",)}) == (("c", 0, 6),)
    assert placed(three(), only={"another": ("c",)}) == (("a", 0, 6),)
    assert "plugins.minmax.only leaves out a, b" in reason(three(), only={"m": ("c",)})


def test_a_node_gets_no_more_layers_than_it_may_have() -> None:
    cut = placed(three(), max_layers={"a": 2, "b": 1})
    assert {name: stop - start for name, start, stop in cut} == {"a": 2, "b": 1, "c": 3}


def test_pinned_layers_are_where_they_are_wanted_whatever_it_costs() -> None:
    cut = placed(three(), pin={"m": {"c": "0-1", "b": "5"}})
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    assert (holder[0], holder[1], holder[5]) == ("c", "c", "b")
    assert placed(three(), pin={"another": {"c": "0-1"}}) == (("a", 0, 6),)


def test_pins_are_kept_where_not_every_order_is_tried() -> None:
    names = [f"n{index:02}" for index in range(12)]
    request = a_request(24, tuple(a_node(name) for name in names))
    cut = placed(request, pin={"m": {"n09": "0-3", "n02": "20"}})
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    assert (holder[0], holder[3], holder[20]) == ("n09", "n09", "n02")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({"pin": {"m": {"z": "0-1"}}}, "wants layers 0-1 on z, which is not among the nodes"),
        ({"pin": {"m": {"a": "4-9"}}}, "wants layers 4-9 on a, and the model has 6 layers"),
        ({"pin": {"m": {"a": "0-3", "b": "3-5"}}}, "wants layers 3-5 on b, and some of them on a"),
        ({"pin": {"m": {"a": "0-3"}}, "max_layers": {"a": 2}}, "max_layers allows it 2"),
        ({"exclude": ("b",), "pin": {"m": {"b": "0"}}}, "wants layers 0-0 on b, which is not among the nodes"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused_by_name(configured: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementRefused, match=message):
        placed(three(), **configured)


@pytest.mark.parametrize(
    "configured",
    [
        {"pin": {"m": {"a": "1-"}}},
        {"pin": {"m": {"a": "5-1"}}},
        {"max_layers": {"a": -1}},
        {"prompt_ratio": -1.0},
        {"objective": "both"},
    ],
)
def test_settings_that_mean_nothing_are_refused(configured: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MinmaxSettings(**configured)


def test_wishes_are_read_from_files_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        '[plugins.minmax]\nexclude = ["laptop"]\n'
        "[plugins.minmax.max_layers]\ndesk = 12\n"
        '[plugins.minmax.only]\n"org/large" = ["studio", "tower"]\n'
        '[plugins.minmax.pin."org/large"]\nstudio = "0-15"\n'
    )
    read = load_settings([file], ["plugins.minmax.objective=throughput"], environ={}).plugin_settings["minmax"]
    assert isinstance(read, MinmaxSettings)
    assert (read.exclude, read.max_layers, read.objective) == (("laptop",), {"desk": 12}, "throughput")
    assert read.only == {"org/large": ("studio", "tower")}
    assert read.pin == {"org/large": {"studio": "0-15"}}
    with pytest.raises(ConfigError, match=r"plugins\.minmax\.pin"):
        load_settings([file], ['plugins.minmax.pin={m={a="x"}}'], environ={})


# -- stability --------------------------------------------------------------------------------------------------------


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


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_shows_what_is_needed_and_how_much_of_it_each_node_can_hold() -> None:
    request = a_request(20, (a_node("studio", 95), a_node("mini", 35), a_node("tiny", 3)))
    with pytest.raises(PlacementRefused) as refusal:
        placed(request, max_layers={"mini": 2})
    text = refusal.value.message
    assert "m does not fit: no cut of its 20 layers fits 3 node(s)." in text
    assert "Wanted by the configuration: at most 2 layers on mini." in text
    assert "layers 0-19 of 20   225 MiB  weights 200 MiB, logits 20 MiB, overhead 5 MiB" in text
    lines = [line.split() for line in text.splitlines()]
    held = {line[0]: line[-2:] for line in lines if line and line[0] in ("studio", "mini", "tiny")}
    assert held == {"studio": ["9", "layers"], "mini": ["2", "layers"], "tiny": ["0", "layers"]}


def test_nodes_that_cannot_hold_a_layer_or_run_no_family_are_named() -> None:
    request = a_request(2, (a_node("a"), a_node("full", 1), a_node("bare", families=())))
    assert "full cannot hold a single layer" in reason(request)
    assert "no model family runs on bare" in reason(request)


def test_no_node_at_all_is_refused() -> None:
    with pytest.raises(PlacementRefused, match="no node is up"):
        placed(a_request(4, ()))


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize(("layers", "count", "seconds"), [(100, 10, 0.05), (200, 1000, 5.0)])
def test_plans_are_made_in_time(objective: str, layers: int, count: int, seconds: float) -> None:
    names = [f"n{index:04}" for index in range(count)]
    nodes = tuple(a_node(name, 30 + 20 * layers // count + index % 100) for index, name in enumerate(names))
    known = {name: steady(layers, 1 + index % 7) for index, name in enumerate(names)}
    request = a_request(layers, nodes, seconds=known, links=links(0.0005, *names[:16]), hidden_bytes=8192)
    policy = MinmaxPlacement(MinmaxSettings.model_validate({"objective": objective}))
    taken = []
    for _ in range(5):  # a busy machine makes any one of them slow
        start = time.perf_counter()
        policy.plan(request)
        taken.append(time.perf_counter() - start)
        if taken[-1] <= seconds:
            return
    pytest.fail(f"the fastest of {len(taken)} plans took {min(taken):.3f} s")
