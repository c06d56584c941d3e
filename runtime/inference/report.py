"""A plan as it is shown: what each stage needs, what each node has, and why."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from runtime.inference.planning import Planned
from runtime.spi import NodeView, Part


class StageNeed(msgspec.Struct, frozen=True):
    """A stage, and the memory it needs. Sizes are in bytes."""

    node: str
    first_layer: int
    last_layer: int
    """Included."""
    bytes: int
    parts: tuple[Part, ...]


class NodeBudget(msgspec.Struct, frozen=True):
    """A node, and the memory it has. Sizes are in bytes."""

    name: str
    backend: str
    total: int
    available: int
    """After what is granted and not yet used."""
    reserve: int
    granted: int
    """To models that are placed there."""
    grantable: int
    takes: int
    """What the plan would reserve."""
    decode: float | None
    """Seconds for one token through all layers of the model, were they on this node; None if it is not measured."""


class LinkReport(msgspec.Struct, frozen=True):
    """A measured link between two nodes."""

    sender: str
    receiver: str
    latency: float
    """Seconds, one way."""
    bandwidth: float
    """Bytes a second."""


class PlanReport(msgspec.Struct, frozen=True):
    """A plan that was made and not carried out."""

    model: str
    layers: int
    context: int
    """Tokens a sequence."""
    sequences: int
    """At once."""
    prefill_chunk: int
    """Prompt tokens a forward pass, at most."""
    prefill_chunk_asked: int
    """What the configuration asks for, as far as the context goes; more than that if memory is short."""
    dtype: str
    dequantize: bool
    reason: str
    stages: tuple[StageNeed, ...]
    nodes: tuple[NodeBudget, ...]
    links: tuple[LinkReport, ...]
    """Between the nodes of adjacent stages, as far as they are measured."""


def describe(planned: Planned, nodes: tuple[NodeView, ...]) -> PlanReport:
    """Describe a plan, and all nodes that are live, whether it was made for them or not."""
    request, stages = planned.request, planned.plan.stages
    names = [stage.node for stage in stages]
    hops = [(one, other) for one, other in pairwise(names) if (one, other) in request.links]
    return PlanReport(
        model=request.model,
        layers=request.layers,
        context=planned.workload.context,
        sequences=planned.workload.sequences,
        prefill_chunk=planned.workload.prefill_chunk,
        prefill_chunk_asked=planned.chunk,
        dtype=planned.options.dtype,
        dequantize=planned.options.dequantize,
        reason=planned.plan.reason,
        stages=tuple(
            StageNeed(
                stage.node, stage.span.start, stage.span.stop - 1, stage.bytes, request.estimate(stage.span).parts
            )
            for stage in stages
        ),
        nodes=tuple(_budget(node, planned) for node in nodes),
        links=tuple(LinkReport(*hop, request.links[hop].latency, request.links[hop].bandwidth) for hop in hops),
    )


def _budget(node: NodeView, planned: Planned) -> NodeBudget:
    memory = node.memory
    seconds = planned.request.seconds.get(node.name)
    return NodeBudget(
        name=node.name,
        backend=node.backend,
        total=memory.total,
        available=memory.available,
        reserve=memory.reserve,
        granted=memory.reserved,
        grantable=memory.grantable,
        takes=sum(stage.bytes for stage in planned.plan.stages if stage.node == node.name),
        decode=None if seconds is None else sum(seconds.decode),
    )
