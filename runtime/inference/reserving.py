"""Reserving memory on every node of a plan: all of it or none, whoever else is placing at the same moment."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from loguru import logger

from runtime.actors import ActorRef, Message, Request
from runtime.cluster import LEDGER, Release, Reserve
from runtime.errors import RuntimeFault
from runtime.spi import Plan

RESERVE_SECONDS = 10.0
"""How long a ledger may take to answer."""

ReplyT = TypeVar("ReplyT", bound=Message)


class Asks(Protocol):
    """What asks actors, such as an :class:`~runtime.actors.ActorSystem`."""

    async def ask(self, target: ActorRef, request: Request[ReplyT], timeout: float) -> ReplyT: ...


async def reserve(asks: Asks, plan: Plan, model: str, epoch: int, owner: ActorRef) -> tuple[int, ...]:
    """Reserve what every stage of a plan needs, and return the reservations in the stages' order.

    The nodes are asked one after the other, by name. So of several placements that want the same nodes, the one that
    has the last of them in dispute has all before it, and goes through; none is refused because of another that is
    refused too and gives everything back. (Ordered acquisition of locks, as in Havender 1968.)

    Raises:
        PlacementRefused: a node has not so much any more; what the others had granted is released.
        RuntimeFault: a node cannot be reached.
    """
    granted: dict[int, int] = {}
    try:
        for index, stage in sorted(enumerate(plan.stages), key=lambda entry: entry[1].node):
            request = Reserve(model=model, epoch=epoch, bytes=stage.bytes, owner=owner)
            granted[index] = (await asks.ask(ActorRef(stage.node, LEDGER), request, RESERVE_SECONDS)).reservation
    except RuntimeFault:
        await asyncio.gather(*(_release(asks, plan.stages[index].node, number) for index, number in granted.items()))
        raise
    return tuple(granted[index] for index in range(len(plan.stages)))


async def _release(asks: Asks, node: str, reservation: int) -> None:
    try:
        await asks.ask(ActorRef(node, LEDGER), Release(reservation), RESERVE_SECONDS)
    except RuntimeFault as fault:
        # The ledger takes it back by itself when it hears that the driver is gone.
        logger.debug("{} is not told to release reservation {}: {}", node, reservation, fault)
