"""Which node holds which layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

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


BATCHED = 16
"""Sequences of a decode step for :attr:`LayerSeconds.batched`."""


class LayerSeconds(msgspec.Struct, frozen=True):
    """How long one node takes for each layer of a model, measured there. The output head is with the last layer's."""

    decode: tuple[float, ...]
    """Seconds for one token of one sequence through each layer: mostly the reading of the weights."""
    batched: tuple[float, ...]
    """Seconds a token through each layer where :data:`BATCHED` sequences decode in one step."""
    prefill: tuple[float, ...]
    """Seconds a token for a chunk of prompt tokens through each layer; without the head, which takes no part."""


class Link(msgspec.Struct, frozen=True):
    """The way from one node to another, measured."""

    latency: float
    """Seconds, one way."""
    bandwidth: float
    """Bytes a second."""


class PlacementRequest(msgspec.Struct, frozen=True):
    """Everything a policy may base its decision on."""

    model: str
    layers: int
    nodes: tuple[NodeView, ...]
    """Live nodes. The first one takes the request, and by custom holds the first layers."""
    estimate: Callable[[LayerSpan], MemoryEstimate]
    """What a slice needs; the same on every node. A slice never needs less than one that lies within it."""
    driver: str = ""
    """The node that drives the model wherever its layers are; empty if it is the first."""
    seconds: Mapping[str, LayerSeconds] = {}
    """By node, for those that have measured. Filled for a policy that :attr:`~PlacementPolicy.measures`."""
    links: Mapping[tuple[str, str], Link] = {}
    """By sender and receiver, for the links that were measured. Filled as :attr:`seconds` are."""
    hidden_bytes: int = 0
    """Bytes of one token's hidden state on its way from a stage to the next."""
    current: tuple[StagePlan, ...] = ()
    """Where the model's layers are, or were when it was last served here; empty if it never was."""


class PlacementPolicy(ABC):
    """A pure function from what is known to a plan. It does no I/O and keeps no state."""

    measures: bool = False
    """Whether the policy weighs speeds and links: only then are the nodes asked to measure them."""

    @abstractmethod
    def plan(self, request: PlacementRequest) -> Plan:
        """Cut the model into contiguous stages that cover every layer once. Called in a worker thread.

        Raises:
            PlacementRefused: nothing fits; the message shows what was needed and what there is. What would make it
                fit is found out, and added, by whoever asked.
        """
