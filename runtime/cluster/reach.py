"""Which nodes can work together, where some do not reach each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.spi import NodeView


def all_linked(nodes: Sequence[NodeView], broken: frozenset[frozenset[str]], own: str) -> tuple[NodeView, ...]:
    """Return those of some nodes that all reach each other, in their order.

    One after the other is taken if it reaches all that were taken before: the node that asks first, then those with
    the most memory. (The largest such set would be a maximum clique, which is hard to find and hardly ever another.)

    Args:
        nodes: each of which the asking node reaches.
        broken: pairs of names that do not reach each other.
        own: the asking node.
    """
    if not broken:
        return tuple(nodes)
    taken: list[str] = []
    for node in sorted(nodes, key=lambda node: (node.name != own, -node.memory.grantable, node.name)):
        if all(frozenset((node.name, other)) not in broken for other in taken):
            taken.append(node.name)
    return tuple(node for node in nodes if node.name in taken)
