"""From what was measured to a :class:`~runtime_minmax.problem.Problem`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from runtime.spi import LayerSeconds, LayerSpan, Link, NodeView, PlacementRequest
from runtime_minmax.constraints import Constraints
from runtime_minmax.problem import Floats, Ints, Problem
from runtime_minmax.settings import MinmaxSettings

UNMEASURED_LAYER = 0.005
"""Seconds for a token through a layer, where no node has measured."""
UNMEASURED_LINK = Link(latency=0.0005, bandwidth=100e6)
"""A wired network of a gigabit a second."""


def layer_seconds(request: PlacementRequest, nodes: Sequence[NodeView], settings: MinmaxSettings) -> Floats:
    """Return (N, L): seconds of each layer for a token and its ``prompt_ratio`` prompt tokens.

    For throughput it is a token of many sequences that decode at once: the head, say, costs more beside a layer then.
    A node that has not measured counts as the slowest that has, of its own backend if there is one.
    """
    measured = {
        node.name: np.array(seconds.decode if settings.objective == "latency" else seconds.batched)
        + settings.prompt_ratio * np.array(seconds.prefill)
        for node in nodes
        if (seconds := measured_here(request, node)) is not None
    }
    rows = []
    for node in nodes:
        alike = [measured[each.name] for each in nodes if each.name in measured and each.backend == node.backend]
        row = measured.get(node.name)
        if row is None:
            row = max(alike or measured.values(), key=np.sum, default=np.full(request.layers, UNMEASURED_LAYER))
        rows.append(row)
    return np.stack(rows)


def measured_here(request: PlacementRequest, node: NodeView) -> LayerSeconds | None:
    """Return what the node has measured, if it is of a model with as many layers."""
    seconds = request.seconds.get(node.name)
    if seconds is None or any(
        len(each) != request.layers for each in (seconds.decode, seconds.batched, seconds.prefill)
    ):
        return None
    return seconds


def link(request: PlacementRequest, sender: str, receiver: str) -> Link:
    """Return the link between two nodes as it was measured in either direction, else :data:`UNMEASURED_LINK`."""
    if sender == receiver:
        return Link(latency=0.0, bandwidth=float("inf"))
    links = request.links
    return links.get((sender, receiver)) or links.get((receiver, sender)) or UNMEASURED_LINK


def make_problem(
    request: PlacementRequest, nodes: Sequence[NodeView], constraints: Constraints, settings: MinmaxSettings
) -> Problem:
    """Put numbers to a request. The driver may be a node that holds no layers."""
    names = [node.name for node in nodes]
    payload = request.hidden_bytes * (1 + settings.prompt_ratio)
    work = np.cumsum(layer_seconds(request, nodes, settings), axis=1)
    lo, hi = _windows(request, nodes, constraints)
    driver = request.driver or request.nodes[0].name
    hop = np.full((len(names), len(names)), UNMEASURED_LINK.latency + payload / UNMEASURED_LINK.bandwidth)
    fastest = dict.fromkeys(names, 0.0)
    index = {name: place for place, name in enumerate(names)}
    for (sender, receiver), way in request.links.items():
        if sender in index and receiver in index and sender != receiver:
            ways = (
                [(sender, receiver)]
                if (receiver, sender) in request.links
                else [(sender, receiver), (receiver, sender)]
            )
            for one, other in ways:
                hop[index[one], index[other]] = way.latency + payload / way.bandwidth
                fastest[one] = max(fastest[one], way.bandwidth)
    return Problem(
        work=np.pad(work, ((0, 0), (1, 0))),
        lo=lo,
        hi=hi,
        hop=hop,
        enter=np.array([link(request, driver, name).latency for name in names]),
        leave=np.array([link(request, name, driver).latency for name in names]),
        line=np.array([payload / (fastest[name] or UNMEASURED_LINK.bandwidth) for name in names]),
    )


def _windows(request: PlacementRequest, nodes: Sequence[NodeView], constraints: Constraints) -> tuple[Ints, Ints]:
    """Return the first and the last start that each node allows for a slice that ends before each layer: (N, L + 1)."""
    layers = request.layers

    @cache
    def need(start: int, stop: int) -> int:
        return request.estimate(LayerSpan(start, stop, layers)).total

    @cache
    def earliest(budget: int) -> list[int]:
        """Return the first start from which the layers up to each end fit; the end itself where none do."""
        starts = [0]
        start = 0
        for stop in range(1, layers + 1):
            while start < stop and need(start, stop) > budget:
                start += 1
            starts.append(start)
        return starts

    lo = np.array([earliest(node.memory.grantable) for node in nodes], dtype=np.int64)
    hi = np.broadcast_to(np.arange(layers + 1) - 1, lo.shape).copy()
    constraints.narrow([node.name for node in nodes], lo, hi)
    return lo, hi
