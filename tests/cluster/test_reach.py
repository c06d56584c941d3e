"""Who can work together, where links are broken."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster.reach import all_linked
from runtime.spi import NodeMemory, NodeView


def node(name: str, memory: int = 100) -> NodeView:
    return NodeView(name, NodeMemory(total=memory, available=memory), "cpu")


def names(nodes: tuple[NodeView, ...]) -> list[str]:
    return [each.name for each in nodes]


def broken(*pairs: str) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(pair) for pair in pairs)


def test_of_two_nodes_that_do_not_reach_each_other_the_one_with_more_memory_is_taken() -> None:
    nodes = (node("a"), node("b", 50), node("c", 60))
    assert names(all_linked(nodes, broken("bc"), "a")) == ["a", "c"]


def test_the_node_that_asks_is_taken_however_little_memory_it_has() -> None:
    assert names(all_linked((node("a", 1), node("b")), broken("ab"), "a")) == ["a"]


def test_a_broken_link_of_a_node_that_is_not_there_matters_to_nobody() -> None:
    nodes = (node("a"), node("b"))
    assert all_linked(nodes, broken("bx", "ay"), "a") == nodes


@given(st.sets(st.sampled_from([f"{one}{other}" for one, other in combinations("abcdef", 2)])))
def test_all_that_are_taken_reach_each_other_and_nobody_else_reaches_them_all(pairs: set[str]) -> None:
    cut = broken(*pairs)
    taken = names(all_linked(tuple(map(node, "abcdef")), cut, "a"))
    assert not any(frozenset(pair) in cut for pair in combinations(taken, 2))
    for other in set("abcdef") - set(taken):
        assert any(frozenset((other, one)) in cut for one in taken)
