"""The even split, and the refusal that says what would make the model fit."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, MemoryEstimate, NodeView, PlacementPolicy, PlacementRequest, Plan, StagePlan
from runtime.spi.memory import KV_CACHE


class Stage(NamedTuple):
    """A slice on a node, with what it needs there."""

    node: NodeView
    span: LayerSpan
    need: MemoryEstimate

    @property
    def deficit(self) -> int:
        """Bytes that the node lacks; negative is what it has to spare."""
        # Not from what can be granted, which is never below nothing: the reserve may be more than there is.
        return self.need.total - self.node.memory.spare


class EvenPlacement(PlacementPolicy):
    """Splits by the number of layers alone. Speed and free memory are not weighed: what does not fit is refused."""

    def plan(self, request: PlacementRequest) -> Plan:
        """Give each node, in the order they come, the same number of layers, the first ones one more.

        With more nodes than layers the last nodes get none, and so does a node that runs no model family.
        """
        if not request.nodes:
            raise PlacementRefused(f"{request.model} cannot be placed: no node is up")
        without = tuple(node.name for node in request.nodes if not node.families)
        request = structs.replace(request, nodes=tuple(node for node in request.nodes if node.families))
        if not request.nodes:
            raise PlacementRefused(
                f"{request.model} cannot be placed: no model family runs on {', '.join(without)}; "
                "name one in roles.families of a node"
            )
        spans = even_spans(request.layers, len(request.nodes))
        stages = [Stage(node, span, request.estimate(span)) for node, span in zip(request.nodes, spans, strict=False)]
        if any(stage.deficit > 0 for stage in stages):
            raise PlacementRefused(_refusal(request, stages))
        return Plan(
            stages=tuple(StagePlan(node=stage.node.name, span=stage.span, bytes=stage.need.total) for stage in stages),
            reason=_reason(request, stages, without),
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


def _reason(request: PlacementRequest, stages: list[Stage], without: tuple[str, ...]) -> str:
    split = ", ".join(f"{stage.node.name} {len(stage.span)}" for stage in stages)
    idle = [node.name for node in request.nodes[len(stages) :]]
    rest = f"; no layers are left for {', '.join(idle)}" if idle else ""
    unable = f"; no model family runs on {', '.join(without)}" if without else ""
    return f"{request.layers} layers split evenly: {split}{rest}{unable}"


def _refusal(request: PlacementRequest, stages: list[Stage]) -> str:
    short = [stage for stage in stages if stage.deficit > 0]
    names = ", ".join(stage.node.name for stage in short)
    lines = [f"{request.model} does not fit: {names} lacks memory for an even split over {len(stages)} node(s).", ""]
    lines += _table([["slice", "needs", "of which"]] + [_need_row(stage) for stage in stages])
    lines.append("")
    lines += _table([["node", "grantable", "available", "reserve", "lacks"]] + [_node_row(stage) for stage in stages])
    lines += ["", _remedy(request, short)]
    return "\n".join(lines)


def _need_row(stage: Stage) -> list[str]:
    parts = ", ".join(f"{part.name} {_size(part.bytes)}" for part in stage.need.parts if part.bytes)
    return [f"layers {stage.span}", _size(stage.need.total), parts]


def _node_row(stage: Stage) -> list[str]:
    memory = stage.node.memory
    lacks = _size(stage.deficit) if stage.deficit > 0 else "-"
    return [stage.node.name, _size(memory.grantable), _size(memory.available), _size(memory.reserve), lacks]


def _remedy(request: PlacementRequest, short: list[Stage]) -> str:
    """Say the smallest change that is known to be enough."""
    kept = [_kept_share(stage) for stage in short]
    if min(kept) >= 0.05:
        return (
            f"What would help: less context or fewer sequences at once, so that the KV cache is at most "
            f"{int(min(kept) * 100)}% of what was asked."
        )
    spare = min(stage.node.memory.spare + stage.node.memory.reserve - stage.need.total for stage in short)
    if spare >= 0:
        return f"What would help: a models.memory_reserve of at most {spare >> 20} MiB where it lacks."
    for nodes in range(len(request.nodes) + 1, min(request.layers, len(request.nodes) + 16) + 1):
        spans = even_spans(request.layers, nodes)
        needs = [request.estimate(span).total for span in spans]
        if all(need <= node.memory.grantable for need, node in zip(needs, request.nodes, strict=False)):
            more = nodes - len(request.nodes)
            return f"What would help: {more} more node(s) with {_size(max(needs[-more:]))} to grant."
    most = max(stage.deficit for stage in short)
    return f"What would help: a smaller or more quantized model, or {_size(most)} more memory where it lacks."


def _kept_share(stage: Stage) -> float:
    """Return the share of the KV cache that would still fit, 0 where even none of it is not enough."""
    cache = sum(part.bytes for part in stage.need.parts if part.name == KV_CACHE)
    return max(0.0, 1 - stage.deficit / cache) if cache else 0.0


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _size(count: int) -> str:
    if count >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{-(-count // (1 << 20))} MiB"
