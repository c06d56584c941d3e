"""Layers in proportion to free memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, NodeView, PlacementPolicy, PlacementRequest, Plan, StagePlan
from runtime.spi.planning import able_nodes, budgets_table, deficit, names, needs_table, size, unable_note


class ProportionalPlacement(PlacementPolicy):
    """Splits by free memory alone: whoever can grant twice as much gets twice as many layers. Speed is not weighed."""

    def plan(self, request: PlacementRequest) -> Plan:
        """Give each node its share, rounded; a node whose share rounds to nothing gets none."""
        nodes = able_nodes(request)
        cuts = shares(request.layers, [node.memory.grantable for node in nodes])
        held = [
            (node, LayerSpan(start, stop, request.layers))
            for node, (start, stop) in zip(nodes, pairwise(cuts), strict=True)
            if start < stop
        ]
        stages = [(node, span, request.estimate(span)) for node, span in held]
        short = [node for node, _, need in stages if deficit(node, need.total) > 0]
        if short:
            budgets = [(node, [_lack(node, need.total)]) for node, _, need in stages]
            lines = [f"{request.model} does not fit: {names(short)} lacks memory for its share of the layers.", ""]
            lines += [*needs_table((f"layers {span}", need) for _, span, need in stages), ""]
            raise PlacementRefused("\n".join([*lines, *budgets_table(budgets, "lacks")]))
        split = ", ".join(f"{node.name} {len(span)}" for node, span in held)
        notes = (f"{request.layers} layers split by free memory: {split}", *unable_note(request))
        return Plan(
            stages=tuple(StagePlan(node.name, span, need.total) for node, span, need in stages),
            reason="; ".join(notes),
        )


def shares(layers: int, weights: Sequence[int]) -> list[int]:
    """Return where to cut ``layers`` in proportion to ``weights``: one more number than there are weights.

    Each cut is rounded by itself, so every share is within one layer of the exact one and none is lost. Without any
    weight at all the first takes everything.
    """
    total = sum(weights)
    cuts = [0]
    seen = 0
    for weight in weights:
        seen += weight
        cuts.append((2 * seen * layers + total) // (2 * total) if total else layers)
    return cuts


def _lack(node: NodeView, need: int) -> str:
    return size(deficit(node, need)) if deficit(node, need) > 0 else "-"
