"""The arithmetic of memory that is granted and not yet used."""

from __future__ import annotations

import msgspec

from runtime.actors import ActorRef
from runtime.errors import PlacementRefused
from runtime.spi import NodeMemory


class Reservation(msgspec.Struct, frozen=True):
    """Memory that a node has granted to a driver."""

    id: int
    model: str
    epoch: int
    bytes: int
    owner: ActorRef
    granted: float
    """When, in seconds."""
    committed: bool = False
    allocated: int = 0
    """How many of the bytes are in memory by now."""

    @property
    def outstanding(self) -> int:
        """Bytes that are promised and not yet taken from what the operating system calls available."""
        return self.bytes - self.allocated


class Reservations:
    """All grants of one node. Times are passed in, and so is what memory there is."""

    def __init__(self, first: int = 1) -> None:
        """Number the grants from ``first``."""
        self._next = first
        self._all: dict[int, Reservation] = {}

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> tuple[Reservation, ...]:
        """Every grant, oldest first."""
        return tuple(self._all.values())

    def remaining(self, memory: NodeMemory) -> NodeMemory:
        """Return the node's memory with every grant taken off: its ``grantable`` is what would still be granted."""
        outstanding = sum(grant.outstanding for grant in self._all.values())
        reserved = sum(grant.bytes for grant in self._all.values())
        return msgspec.structs.replace(memory, available=max(0, memory.available - outstanding), reserved=reserved)

    def reserve(
        self, model: str, epoch: int, bytes_: int, owner: ActorRef, memory: NodeMemory, now: float
    ) -> Reservation:
        """Grant memory, all of it or none.

        Raises:
            PlacementRefused: there is not so much.
        """
        left = self.remaining(memory)
        if bytes_ < 0 or bytes_ > left.grantable:
            raise PlacementRefused(
                f"{owner.node} asks for {bytes_} bytes for {model}, and {left.grantable} can be granted: "
                f"{memory.available} available, {memory.available - left.available} of them promised and not yet "
                f"used, {memory.reserve} kept free"
            )
        grant = Reservation(self._next, model, epoch, bytes_, owner, now)
        self._next += 1
        self._all[grant.id] = grant
        return grant

    def commit(self, reservation: int, allocated: int | None) -> None:
        """Note that a grant is in use, and how much of it is in memory (None: all of it).

        Raises:
            PlacementRefused: there is no such grant any more.
        """
        grant = self._all.get(reservation)
        if grant is None:
            raise PlacementRefused(
                f"reservation {reservation} is gone: its time ran out, or its owner was lost; reserve again"
            )
        taken = grant.bytes if allocated is None else min(max(0, allocated), grant.bytes)
        self._all[reservation] = msgspec.structs.replace(grant, committed=True, allocated=taken)

    def release(self, reservation: int) -> Reservation | None:
        """Take a grant back and return it; one that is gone is no error."""
        return self._all.pop(reservation, None)

    def release_owner(self, owner: ActorRef) -> list[Reservation]:
        """Take back every grant of an owner, and return them."""
        return self._take([grant for grant in self._all.values() if grant.owner == owner])

    def expire(self, before: float) -> list[Reservation]:
        """Take back every grant from before a time that was never committed, and return them."""
        return self._take([grant for grant in self._all.values() if not grant.committed and grant.granted < before])

    def owns(self, owner: ActorRef) -> bool:
        """Whether an owner has any grant."""
        return any(grant.owner == owner for grant in self._all.values())

    def _take(self, grants: list[Reservation]) -> list[Reservation]:
        for grant in grants:
            del self._all[grant.id]
        return grants
