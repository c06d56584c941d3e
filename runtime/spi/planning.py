"""What placement policies share: who can hold layers at all, and the two tables of a plan or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runtime.errors import PlacementRefused
from runtime.spi.cluster import NodeView
from runtime.spi.memory import MemoryEstimate
from runtime.spi.placement import PlacementRequest


def able_nodes(request: PlacementRequest) -> tuple[NodeView, ...]:
    """Return the nodes that run a model family, in their order.

    Raises:
        PlacementRefused: there are none.
    """
    if not request.nodes:
        raise PlacementRefused(f"{request.model} cannot be placed: no node is up")
    able = tuple(node for node in request.nodes if node.families)
    if not able:
        raise PlacementRefused(
            f"{request.model} cannot be placed: no model family runs on {names(request.nodes)}; "
            "name one in roles.families of a node"
        )
    return able


def unable_note(request: PlacementRequest) -> tuple[str, ...]:
    """Return a note on the nodes that :func:`able_nodes` leaves out, if there are any."""
    without = [node for node in request.nodes if not node.families]
    return (f"no model family runs on {names(without)}",) if without else ()


def needs_table(slices: Iterable[tuple[str, MemoryEstimate]]) -> list[str]:
    """Return the lines of the first table: each slice by its name, what it needs, and its parts."""
    rows = [["slice", "needs", "of which"]]
    for name, need in slices:
        parts = ", ".join(f"{part.name} {size(part.bytes)}" for part in need.parts if part.bytes)
        rows.append([name, size(need.total), parts])
    return aligned(rows)


def budgets_table(budgets: Iterable[tuple[NodeView, Sequence[str]]], *headings: str) -> list[str]:
    """Return the lines of the second table: each node's memory, and whatever ``headings`` promise."""
    rows = [["node", "grantable", "available", "reserve", *headings]]
    for node, cells in budgets:
        memory = node.memory
        rows.append([node.name, size(memory.grantable), size(memory.available), size(memory.reserve), *cells])
    return aligned(rows)


def deficit(node: NodeView, need: int) -> int:
    """Return the bytes that the node lacks for ``need``; below zero, what it has to spare."""
    # Not from what can be granted, which is never below nothing: the reserve may be more than there is.
    return need - node.memory.spare


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as indented lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def names(nodes: Iterable[NodeView]) -> str:
    """Join the nodes' names."""
    return ", ".join(node.name for node in nodes)


def size(count: int) -> str:
    """Write a number of bytes, rounded up to whole MiB, as GiB where it is many."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{-(-count // (1 << 20))} MiB"
