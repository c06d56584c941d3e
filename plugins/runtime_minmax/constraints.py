"""What the user wants of a placement, whatever it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.errors import PlacementRefused
from runtime.spi import NodeView, PlacementRequest
from runtime_minmax.problem import Ints
from runtime_minmax.settings import MinmaxSettings, pinned_layers


class Constraints(NamedTuple):
    """What of the settings concerns one model."""

    max_layers: Mapping[str, int]
    """The most layers that a node gets."""
    pins: Mapping[str, tuple[int, int]]
    """The layers, from the first up to but not with the second, that are on a node."""

    def narrow(self, names: Sequence[str], lo: Ints, hi: Ints) -> None:
        """Narrow, in place, the starts that are allowed for a slice of each node up to each end: (N, L + 1)."""
        stops = np.arange(lo.shape[1])
        for row, name in enumerate(names):
            lo[row] = np.maximum(lo[row], stops - self.max_layers.get(name, len(stops)))
            for owner, (first, end) in self.pins.items():
                if owner == name:  # from `first` or before it, to `end` or beyond
                    hi[row] = np.where(stops < end, -1, np.minimum(hi[row], first))
                else:  # all of it before `first`, or all from `end` on
                    lo[row] = np.where(stops > first, np.maximum(lo[row], end), lo[row])


def eligible(
    request: PlacementRequest, nodes: Sequence[NodeView], settings: MinmaxSettings
) -> tuple[tuple[NodeView, ...], list[str]]:
    """Return the nodes that the settings allow for the model, and notes on the others.

    Raises:
        PlacementRefused: the settings leave none.
    """
    only = settings.only.get(request.model)
    excluded = [node.name for node in nodes if node.name in settings.exclude]
    others = [node.name for node in nodes if only is not None and node.name not in only and node.name not in excluded]
    left = tuple(node for node in nodes if node.name not in excluded and node.name not in others)
    notes = [f"plugins.minmax.exclude leaves out {', '.join(excluded)}"] if excluded else []
    notes += [f"plugins.minmax.only leaves out {', '.join(others)}"] if others else []
    if not left:
        raise PlacementRefused(f"{request.model} cannot be placed: {'; '.join(notes)}, and nobody else is up")
    return left, notes


def constraints_on(request: PlacementRequest, nodes: Sequence[NodeView], settings: MinmaxSettings) -> Constraints:
    """Read what concerns the model.

    Raises:
        PlacementRefused: layers are pinned to a node that is not there, that do not exist, or that others have.
    """
    pins = {node: pinned_layers(text) for node, text in settings.pin.get(request.model, {}).items()}
    known = {node.name for node in nodes}
    end_before, node_before = 0, ""
    for node, (first, end) in sorted(pins.items(), key=lambda item: item[1]):
        what = f"{request.model} cannot be placed: plugins.minmax.pin wants layers {first}-{end - 1} on {node}"
        if node not in known:
            raise PlacementRefused(f"{what}, which is not among the nodes that can hold them: {', '.join(known)}")
        if end > request.layers:
            raise PlacementRefused(f"{what}, and the model has {request.layers} layers")
        if first < end_before:
            raise PlacementRefused(f"{what}, and some of them on {node_before}")
        if end - first > settings.max_layers.get(node, request.layers):
            raise PlacementRefused(f"{what}, and plugins.minmax.max_layers allows it {settings.max_layers[node]}")
        end_before, node_before = end, node
    return Constraints(settings.max_layers, pins)


def in_order(request: PlacementRequest, nodes: Sequence[NodeView], constraints: Constraints) -> tuple[NodeView, ...]:
    """Return the nodes in the order that stages come in where not every order is tried.

    The nearest to the driver first, by name where that is equal. The place of one node beside another depends on these
    two alone, so a further node changes nothing. Nodes with pinned layers change places among each other until they
    come in the order of those.
    """
    driver = request.driver or request.nodes[0].name

    def distance(node: NodeView) -> tuple[float, str]:
        way = request.links.get((driver, node.name))
        return (-1.0 if node.name == driver else way.latency if way else float("inf"), node.name)

    ordered = sorted(nodes, key=distance)
    pinned = iter(
        sorted((node for node in nodes if node.name in constraints.pins), key=lambda n: constraints.pins[n.name])
    )
    return tuple(next(pinned) if node.name in constraints.pins else node for node in ordered)
