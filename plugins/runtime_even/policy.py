"""The even split."""

from __future__ import annotations

from typing import NamedTuple

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, MemoryEstimate, NodeView, PlacementPolicy, PlacementRequest, Plan, StagePlan
from runtime.spi.planning import able_nodes, budgets_table, deficit, names, needs_table, size, unable_note


class Stage(NamedTuple):
    """A slice on a node, with what it needs there."""

    node: NodeView
    span: LayerSpan
    need: MemoryEstimate

    @property
    def deficit(self) -> int:
        """Bytes that the node lacks."""
        return deficit(self.node, self.need.total)


class EvenPlacement(PlacementPolicy):
    """Splits by the number of layers alone. Speed and free memory are not weighed: what does not fit is refused."""

    def plan(self, request: PlacementRequest) -> Plan:
        """Give each node, in the order they come, the same number of layers, the first ones one more.

        With more nodes than layers the last nodes get none, and so does a node that runs no model family.
        """
        nodes = able_nodes(request)
        spans = even_spans(request.layers, len(nodes))
        stages = [Stage(node, span, request.estimate(span)) for node, span in zip(nodes, spans, strict=False)]
        if any(stage.deficit > 0 for stage in stages):
            raise PlacementRefused(_refusal(request, stages))
        return Plan(
            stages=tuple(StagePlan(node=stage.node.name, span=stage.span, bytes=stage.need.total) for stage in stages),
            reason=_reason(request, stages, nodes[len(stages) :]),
        )


def even_spans(layers: int, nodes: int) -> list[LayerSpan]:
    """Cut ``layers`` into at most ``nodes`` contiguous spans whose lengths differ by one at most, longer ones first."""
    parts = min(layers, nodes)
    length, longer = divmod(layers, parts)
    spans = []
    start = 0
    for part in range(parts):
        stop = start + length + (part < longer)
        spans.append(LayerSpan(start, stop, layers))
        start = stop
    return spans


def _reason(request: PlacementRequest, stages: list[Stage], idle: tuple[NodeView, ...]) -> str:
    split = ", ".join(f"{stage.node.name} {len(stage.span)}" for stage in stages)
    rest = (f"no layers are left for {names(idle)}",) if idle else ()
    return "; ".join((f"{request.layers} layers split evenly: {split}", *rest, *unable_note(request)))


def _refusal(request: PlacementRequest, stages: list[Stage]) -> str:
    short = names(stage.node for stage in stages if stage.deficit > 0)
    budgets = [(stage.node, [size(stage.deficit) if stage.deficit > 0 else "-"]) for stage in stages]
    return "\n".join(
        [
            f"{request.model} does not fit: {short} lacks memory for an even split over {len(stages)} node(s).",
            "",
            *needs_table((f"layers {stage.span}", stage.need) for stage in stages),
            "",
            *budgets_table(budgets, "lacks"),
        ]
    )
