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


class Reservations:
    """All grants of one node. Times are passed in, and so is what memory there is, and how much of it models hold.

    What models hold is missing from what the operating system calls available, be it weights or a KV cache that has
    grown. The rest of what was granted is promised: nobody else can have it.
    """

    def __init__(self, first: int = 1) -> None:
        """Number the grants from ``first``."""
        self._next = first
        self._all: dict[int, Reservation] = {}

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> tuple[Reservation, ...]:
        """Every grant, oldest first."""
        return tuple(self._all.values())

    def remaining(self, memory: NodeMemory, held: int) -> NodeMemory:
        """Return the node's memory with every grant in it: its ``grantable`` is what would still be granted.

        Args:
            memory: what the machine has, without any grant.
            held: bytes of it that the models of this node have taken by now.
        """
        reserved = sum(grant.bytes for grant in self._all.values())
        return msgspec.structs.replace(memory, reserved=reserved, promised=max(0, reserved - held))

    def reserve(
        self, model: str, epoch: int, bytes_: int, owner: ActorRef, memory: NodeMemory, held: int, now: float
    ) -> Reservation:
        """Grant memory, all of it or none.

        Raises:
            PlacementRefused: there is not so much.
        """
        left = self.remaining(memory, held)
        if bytes_ < 0 or bytes_ > left.grantable:
            raise PlacementRefused(
                f"{owner.node} asks for {bytes_} bytes for {model}, and {left.grantable} can be granted: "
                f"{_room(left)}, {left.promised} of them promised and not yet used, {left.reserve} kept free"
            )
        grant = Reservation(self._next, model, epoch, bytes_, owner, now)
        self._next += 1
        self._all[grant.id] = grant
        return grant

    def confirm(self, reservation: int, memory: NodeMemory, held: int) -> None:
        """Make sure that what was promised is still there, just before it is used.

        What is kept free may be used up by then: that is what it is for.

        Raises:
            PlacementRefused: there is no such grant any more, or something else has taken the memory meanwhile.
        """
        grant = self._granted(reservation)
        left = self.remaining(memory, held)
        if left.promised > left.room:
            raise PlacementRefused(
                f"{grant.bytes} bytes were granted to {grant.model}, and something else has taken the memory since: "
                f"{left.promised} are promised to models, and there are {_room(left)}. Free "
                f"{left.promised - left.room} bytes on this node, or ask again to place the model anew"
            )

    def commit(self, reservation: int) -> None:
        """Note that a grant is in use, so that it does not run out.

        Raises:
            PlacementRefused: there is no such grant any more.
        """
        self._all[reservation] = msgspec.structs.replace(self._granted(reservation), committed=True)

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

    def _granted(self, reservation: int) -> Reservation:
        grant = self._all.get(reservation)
        if grant is None:
            raise PlacementRefused(
                f"reservation {reservation} is gone: its time ran out, or its owner was lost; reserve again"
            )
        return grant

    def _take(self, grants: list[Reservation]) -> list[Reservation]:
        for grant in grants:
            del self._all[grant.id]
        return grants


def _room(memory: NodeMemory) -> str:
    """Say what there is, and what bounds it."""
    if memory.limit is not None and memory.limit < memory.available:
        there = f"{memory.limit} within the limit of the container or the GPU"
    else:
        there = f"{memory.available} available"
    return f"{there} and {memory.swap} of swap" if memory.policy == "swap" else there
