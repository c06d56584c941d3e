"""What a plugin may know of the nodes."""

from __future__ import annotations

import msgspec


class NodeMemory(msgspec.Struct, frozen=True):
    """Memory of one node, in bytes."""

    total: int
    available: int
    """What a new allocation can have without swapping, as the operating system tells it."""
    reserved: int = 0
    """Granted by the node's ledger to models that are placed there."""
    reserve: int = 0
    """Kept free for everything else on the machine."""

    @property
    def grantable(self) -> int:
        """What the ledger would still grant."""
        return max(0, self.available - self.reserve)


class NodeView(msgspec.Struct, frozen=True):
    """One live node as a placement policy sees it."""

    name: str
    memory: NodeMemory
    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    families: tuple[str, ...] = ()
    """Model family plugins that the node has."""
