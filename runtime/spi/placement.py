"""Which node holds which layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from runtime.spi.cluster import NodeView
from runtime.spi.memory import MemoryEstimate
from runtime.spi.span import LayerSpan


class StagePlan(msgspec.Struct, frozen=True):
    """One stage: a node and the layers it holds."""

    node: str
    span: LayerSpan
    bytes: int
    """What the stage reserves on the node."""


class Plan(msgspec.Struct, frozen=True):
    """The stages in pipeline order, and why they are so."""

    stages: tuple[StagePlan, ...]
    reason: str


class PlacementRequest(msgspec.Struct, frozen=True):
    """Everything a policy may base its decision on."""

    model: str
    layers: int
    nodes: tuple[NodeView, ...]
    """Live nodes. The first one takes the request, and by custom holds the first layers."""
    estimate: Callable[[LayerSpan], MemoryEstimate]
    """What a slice needs; the same on every node."""


class PlacementPolicy(ABC):
    """A pure function from what is known to a plan. It does no I/O and keeps no state."""

    @abstractmethod
    def plan(self, request: PlacementRequest) -> Plan:
        """Cut the model into contiguous stages that cover every layer once.

        Raises:
            PlacementRefused: nothing fits; the message shows what was needed and what there is.
        """
