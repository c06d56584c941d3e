"""What is known of a node."""

from __future__ import annotations

import msgspec

from runtime.cluster.detector import PeerState
from runtime.spi import NodeMemory, NodeView


class NodeProfile(msgspec.Struct, frozen=True):
    """What a node tells of itself."""

    version: str
    """Of the runtime."""
    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    memory: NodeMemory
    families: tuple[str, ...] = ()
    """Model family plugins that it has."""
    unhealthy: str | None = None
    """Why it cannot compute at present; None if it can."""


class NodeInfo(msgspec.Struct, frozen=True):
    """One node as this one sees it."""

    name: str
    boot: int
    """Milliseconds since the epoch at its start."""
    address: str
    state: PeerState
    profile: NodeProfile | None
    """None until it has told."""
    rtt: float | None
    """Seconds from a ping to its answer, smoothed; None until measured, and for this node itself."""
    phi: float | None
    """How unlikely its silence is (:mod:`runtime.cluster.phi`); None where that is not the measure."""
    last_seen: float
    """Seconds since its last sign of life, at the time of asking."""
    reason: str | None
    """Why it is not up."""
    local: bool
    """Whether it is this node itself."""

    def view(self) -> NodeView | None:
        """What a placement policy sees of the node; None if it is not up, has not told, or cannot compute."""
        if self.state is PeerState.DOWN or self.profile is None or self.profile.unhealthy is not None:
            return None
        return NodeView(self.name, self.profile.memory, self.profile.backend, self.profile.families)
