"""A node's memory, granted by the node itself: no other node can over-commit it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Down, Message, Request
from runtime.cluster.changes import Changes
from runtime.cluster.reservations import Reservation, Reservations
from runtime.spi import NodeMemory

LEDGER = "/ledger"
"""Path of the actor on every node."""
UNCOMMITTED = 7200.0
"""Seconds after which a grant that was never committed is taken back: longer than any load, and its download, lasts.

The loss of the owner takes a grant back at once; this is for an owner that lives and has forgotten.
"""
_SWEEP = 5.0


class Reserved(Message, frozen=True, tag="ledger.reserved"):
    """The memory is granted."""

    reservation: int


class Reserve(Request[Reserved], frozen=True, tag="ledger.reserve"):
    """Set memory aside for a model. Refused with :class:`~runtime.errors.PlacementRefused`.

    It is held until it is released, or ``owner`` (the model's driver, by its exact incarnation) is gone.
    """

    model: str
    epoch: int
    """Of the placement; for people to read."""
    bytes: int
    owner: ActorRef


class Settled(Message, frozen=True, tag="ledger.settled"):
    """It was carried out, or is so."""


class Confirm(Request[Settled], frozen=True, tag="ledger.confirm"):
    """Make sure that the memory is still there, before it is used: other programs ask nobody.

    Refused with :class:`~runtime.errors.PlacementRefused`.
    """

    reservation: int


class Commit(Request[Settled], frozen=True, tag="ledger.commit"):
    """The memory is in use."""

    reservation: int


class Release(Request[Settled], frozen=True, tag="ledger.release"):
    """Give the memory back. What is not held is released already."""

    reservation: int


class Ledger:
    """The grants of this node. They outlive a restart of the actor that answers for them."""

    def __init__(
        self,
        system: ActorSystem,
        memory: Callable[[], NodeMemory],
        held: Callable[[], int] = lambda: 0,
        uncommitted: float = UNCOMMITTED,
    ) -> None:
        """``memory`` tells what the machine has now, ``held`` the bytes that models have taken of it.

        Both must return at once.
        """
        self.reservations = Reservations(first=(system.boot << 20) + 1)
        """Numbered so that an id from an earlier life of the node means nothing in this one."""
        self.changes = Changes()
        self.uncommitted = uncommitted
        self._system = system
        self._memory = memory
        self._held = held

    def start(self) -> ActorRef:
        """Start the actor."""
        return self._system.spawn(lambda: _LedgerActor(self), LEDGER.removeprefix("/"))

    def memory(self) -> NodeMemory:
        """Return the machine's memory with what is granted of it: what this node tells of itself."""
        return self.reservations.remaining(self._memory(), self._held())

    def reserve(self, request: Reserve, now: float) -> Reservation:
        """Grant a request, or refuse it; see :meth:`Reservations.reserve`."""
        return self.reservations.reserve(
            request.model, request.epoch, request.bytes, request.owner, self._memory(), self._held(), now
        )

    def confirm(self, reservation: int) -> None:
        """See :meth:`Reservations.confirm`."""
        self.reservations.confirm(reservation, self._memory(), self._held())


class _LedgerActor(Actor):
    """Brings requests, the loss of owners, and time to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def started(self) -> None:
        self.context.start_task(self._sweep(), "sweep")

    async def receive(self, message: Message) -> Message | None:
        held = self._ledger.reservations
        reply: Message | None = None
        match message:
            case Reserve(owner=owner):
                known = held.owns(owner)
                reply = Reserved(self._ledger.reserve(message, self.context.now()).id)
                if not known:
                    self.context.monitor(owner)
            case Confirm(reservation):
                self._ledger.confirm(reservation)
                return Settled()
            case Commit(reservation):
                held.commit(reservation)
                reply = Settled()
            case Release(reservation):
                grant = held.release(reservation)
                if grant is not None and not held.owns(grant.owner):
                    self.context.demonitor(grant.owner)
                reply = Settled()
            case Down(owner, reason):
                for grant in held.release_owner(owner):
                    logger.info(
                        "{} bytes for {} are free again: its driver is gone ({})", grant.bytes, grant.model, reason
                    )
            case _:
                logger.warning("{} has no use for a {}", LEDGER, type(message).__name__)
                return None
        self._ledger.changes.notify()
        return reply

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP, self._ledger.uncommitted))
            for grant in self._ledger.reservations.expire(self.context.now() - self._ledger.uncommitted):
                logger.warning("{} bytes for {} are free again: they were never used", grant.bytes, grant.model)
                self._ledger.changes.notify()
