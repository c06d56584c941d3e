"""What placement by minmax weighs: speeds, links, memory, and what is not measured."""

from __future__ import annotations

from msgspec import structs

from runtime.spi import LayerSeconds
from tests.plugins.minmax_cases import MS, a_node, a_request, links, placed, reason, steady


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


def test_throughput_weighs_a_token_of_many_that_decode_at_once_and_latency_that_of_one() -> None:
    alone = (1 * MS,) * 9 + (2 * MS,)
    together = (1 * MS,) * 9 + (9 * MS,)  # a head, whose products are many
    seconds = LayerSeconds(alone, together, (0.0,) * 10)
    both = {"a": seconds, "b": seconds}
    request = a_request(10, (a_node("a"), a_node("b")), seconds=both, links=links(0.0, "a", "b"))
    assert [stop - start for _, start, stop in placed(request, objective="throughput")] == [9, 1]
    slower = structs.replace(request, seconds={"a": structs.replace(seconds, decode=(3 * MS,) * 10), "b": seconds})
    assert placed(slower, objective="latency") == (("b", 0, 10),)


def test_prompt_tokens_count_by_their_ratio() -> None:
    request = a_request(
        4,
        (a_node("reads"), a_node("writes")),
        seconds={
            "reads": LayerSeconds((2 * MS,) * 4, (2 * MS,) * 4, (0.1 * MS,) * 4),
            "writes": LayerSeconds((1 * MS,) * 4, (1 * MS,) * 4, (1 * MS,) * 4),
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
