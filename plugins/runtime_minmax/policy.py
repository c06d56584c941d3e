"""The policy: from a request to a plan with its reasons, or a refusal with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import PlacementRefused
from runtime.spi import LayerSpan, NodeView, PlacementPolicy, PlacementRequest, Plan, StagePlan
from runtime.spi.planning import able_nodes, budgets_table, needs_table, unable_note
from runtime_minmax.constraints import Constraints, constraints_on, eligible, in_order
from runtime_minmax.costs import make_problem, measured_here
from runtime_minmax.problem import Problem, Slice
from runtime_minmax.search import EVERY_ORDER_NODES, Found, least_bottleneck, least_latency
from runtime_minmax.settings import MinmaxSettings


class MinmaxPlacement(PlacementPolicy):
    """Finds the cut of least latency or of least bottleneck among all that fit, and keeps the one there is if that is
    about as good."""

    measures = True

    def __init__(self, settings: MinmaxSettings) -> None:
        self._settings = settings

    def plan(self, request: PlacementRequest) -> Plan:
        """Return the best plan; see :mod:`runtime_minmax.problem` for what is weighed.

        Up to eight nodes every order of them is tried. With more, stages come nearest to the driver first.
        """
        settings = self._settings
        nodes, notes = eligible(request, able_nodes(request), settings)
        constraints = constraints_on(request, nodes, settings)
        nodes = in_order(request, nodes, constraints)
        problem = make_problem(request, nodes, constraints, settings)
        found = (least_latency if settings.objective == "latency" else least_bottleneck)(problem)
        if found is None:
            raise PlacementRefused(_refusal(request, nodes, problem, constraints, notes))
        kept = self._kept(request, nodes, problem, found)
        plan = kept or found.plan
        reasons = [
            self._headline(request, nodes, problem, plan),
            *(["they stay where they are"] if kept and kept != found.plan else []),
            *_left_out(request, nodes, problem, found if plan == found.plan else Found(plan, {})),
            *_unmeasured(request, nodes),
            *notes,
            *unable_note(request),
        ]
        return Plan(
            stages=tuple(_stage(request, nodes[part.node].name, part) for part in plan), reason="; ".join(reasons)
        )

    def _cost(self, problem: Problem, plan: list[Slice]) -> float:
        return problem.latency(plan) if self._settings.objective == "latency" else problem.bottleneck(plan)

    def _kept(
        self, request: PlacementRequest, nodes: Sequence[NodeView], problem: Problem, found: Found
    ) -> list[Slice] | None:
        """Return the current plan if it is still possible and about as good as the best."""
        index = {node.name: place for place, node in enumerate(nodes)}
        if not request.current or any(stage.node not in index for stage in request.current):
            return None
        current = [Slice(index[stage.node], stage.span.start, stage.span.stop) for stage in request.current]
        if not all(problem.allows(part) for part in current):
            return None
        best = self._cost(problem, found.plan)
        return current if self._cost(problem, current) <= best * (1 + self._settings.tolerance) else None

    def _headline(
        self, request: PlacementRequest, nodes: Sequence[NodeView], problem: Problem, plan: list[Slice]
    ) -> str:
        split = ", ".join(f"{nodes[part.node].name} {part.stop - part.start}" for part in plan)
        if not _any_measured(request, nodes):  # a time would be one of the assumed speed
            return f"{request.layers} layers cut for {self._settings.objective}: {split}"
        latency = f"{_milliseconds(problem.latency(plan))} a token"
        if self._settings.objective == "throughput":
            busiest = f"the busiest stage takes {_milliseconds(problem.bottleneck(plan))}"
            return f"{request.layers} layers cut for throughput: {split}; {busiest}, all of them {latency}"
        return f"{request.layers} layers cut for latency: {split}; {latency}"


def _stage(request: PlacementRequest, node: str, part: Slice) -> StagePlan:
    span = LayerSpan(part.start, part.stop, request.layers)
    return StagePlan(node, span, request.estimate(span).total)


def _any_measured(request: PlacementRequest, nodes: Sequence[NodeView]) -> bool:
    return any(measured_here(request, node) is not None for node in nodes)


def _left_out(request: PlacementRequest, nodes: Sequence[NodeView], problem: Problem, found: Found) -> list[str]:
    """Say why each node that could have layers has none."""
    measured = _any_measured(request, nodes)
    used = {part.node for part in found.plan}
    latency = problem.latency(found.plan)
    notes = []
    unhelpful = []
    for index, node in enumerate(nodes):
        if index in used:
            continue
        if not (problem.lo[index] <= problem.hi[index]).any():
            notes.append(f"{node.name} cannot hold a single layer")
        elif measured and latency < found.latency_with.get(index, latency) < float("inf"):
            slower = _milliseconds(found.latency_with[index])
            notes.append(f"{node.name} is left out: with it a token would take {slower} instead")
        else:
            unhelpful.append(node.name)
    return notes + ([f"{', '.join(unhelpful)} would not make it faster"] if unhelpful else [])


def _unmeasured(request: PlacementRequest, nodes: Sequence[NodeView]) -> list[str]:
    if len(nodes) < 2:
        return []  # there is nothing to choose between
    unknown = [node.name for node in nodes if measured_here(request, node) is None]
    if len(unknown) == len(nodes):
        return ["no node's speed is measured, so all count as equally fast"]
    return [f"not measured, and taken to be as slow as the slowest: {', '.join(unknown)}"] if unknown else []


def _refusal(
    request: PlacementRequest, nodes: Sequence[NodeView], problem: Problem, constraints: Constraints, notes: list[str]
) -> str:
    layers = request.layers
    whole = LayerSpan.whole(layers)
    single = {LayerSpan(layer, layer + 1, layers) for layer in (0, layers // 2, layers - 1)}
    most = [
        max((int(stop - start) for stop, start in enumerate(row) if start <= last[stop]), default=0)
        for row, last in zip(problem.lo, problem.hi, strict=True)
    ]
    limits = "; ".join([*notes, *_constraint_notes(constraints, nodes)])
    order = "" if len(nodes) <= EVERY_ORDER_NODES else ", the nearest to the driver first"
    return "\n".join(
        [
            f"{request.model} does not fit: no cut of its {layers} layers fits {len(nodes)} node(s){order}.",
            *([f"Wanted by the configuration: {limits}."] if limits else []),
            "",
            *needs_table((f"layers {span}", request.estimate(span)) for span in (whole, *sorted(single - {whole}))),
            "",
            *budgets_table(
                ((node, [f"{count} layers"]) for node, count in zip(nodes, most, strict=True)), "holds at most"
            ),
        ]
    )


def _constraint_notes(constraints: Constraints, nodes: Sequence[NodeView]) -> list[str]:
    names = {node.name for node in nodes}
    limits = [f"at most {most} layers on {name}" for name, most in constraints.max_layers.items() if name in names]
    pins = [f"layers {first}-{end - 1} on {name}" for name, (first, end) in constraints.pins.items()]
    return [*limits, *pins]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
