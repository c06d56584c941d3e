"""What a plugin may know of the nodes."""

from __future__ import annotations

from typing import Literal

import msgspec

MemoryPolicy = Literal["strict", "swap", "off"]
"""What a node grants: what it has without swapping, also its free swap, or whatever is asked."""

UNLIMITED = 1 << 60
"""What a node can grant that does not look at its memory, in bytes: more than there is anywhere."""


class NodeMemory(msgspec.Struct, frozen=True):
    """Memory of one node, in bytes: the parts that its budget for models is made of."""

    total: int
    available: int
    """What a new allocation can have without swapping, as the operating system tells it."""
    reserved: int = 0
    """Granted by the node's ledger to models that are placed there."""
    reserve: int = 0
    """Kept free for everything else on the machine."""
    promised: int = 0
    """The part of ``reserved`` that is not in memory yet, and so is in ``available`` still."""
    reclaimable: int = 0
    """The part of ``available`` that files are cached in; the system gives it up when it is asked for."""
    swap: int = 0
    """Free swap. It counts under the policy ``swap`` alone."""
    limit: int | None = None
    """What a limit below the machine's own leaves: a container's, or that of a GPU's working set. None is no limit."""
    policy: MemoryPolicy = "strict"

    @property
    def room(self) -> int:
        """What there is for models that are granted and those that are yet to be, without the reserve taken off."""
        if self.policy == "off":
            return UNLIMITED
        room = self.available if self.limit is None else min(self.available, self.limit)
        return room + self.swap if self.policy == "swap" else room

    @property
    def spare(self) -> int:
        """What can be granted; below zero, what is lacking for the promises and the reserve."""
        return self.room - self.promised - self.reserve

    @property
    def grantable(self) -> int:
        """What the ledger would still grant."""
        return max(0, self.spare)


class NodeView(msgspec.Struct, frozen=True):
    """One live node as a placement policy sees it."""

    name: str
    memory: NodeMemory
    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    families: tuple[str, ...] = ()
    """Model family plugins that the node has."""
