"""Which driver serves a model: every node's actor that finds one, or makes one.

There is no master. A node that wants a model asks its peers before it places it; of nodes that want the same one at
the same moment, one goes ahead and the others wait for it. Which one is decided as in Ricart and Agrawala's mutual
exclusion (https://doi.org/10.1145/358527.358537): by a Lamport clock, and by name where the clocks are equal. So a
node that let another one pass cannot overtake it with a claim of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loguru import logger

from runtime.actors import Actor, ActorRef, Down, Message, ReplyTo, Restart
from runtime.errors import ActorError, PeerUnreachable, RuntimeFault
from runtime.inference.protocol import AwaitReady, Claimed, ClaimModel, EnsureModel, Ready
from runtime.inference.stage import LOAD_SECONDS

MODELS = "models"
"""Path of every node's :class:`Models`."""
CLAIM_SECONDS = 5.0


class Models(Actor):
    """Finds or starts drivers.

    Args:
        new_driver: makes the driver of a model.
        served_by: the driver that is known to serve a model anywhere, if any.
        peers: names of the other live nodes.
    """

    def __init__(
        self,
        new_driver: Callable[[str], Actor],
        served_by: Callable[[str], ActorRef | None],
        peers: Callable[[], list[str]],
    ) -> None:
        self._new_driver = new_driver
        self._served_by = served_by
        self._peers = peers
        self._drivers: dict[str, ActorRef] = {}
        self._claims: set[tuple[str, int]] = set()
        """Models that this node is about to place, each with the clock of the claim."""
        self._clock = 0
        self._names = 0

    async def receive(self, message: Message) -> Message | None:
        """Serve a model, or say who does."""
        match message:
            case EnsureModel():
                reply = self.context.reply_later()
                self.context.start_task(self._ensure(message, reply), f"ensure {message.model}", reply)
            case ClaimModel(model, node, clock):
                self._clock = max(self._clock, clock)
                return Claimed(self.context.self_ref if self._is_before(model, clock, node) else None)
            case Down(ref):
                self._drivers = {model: driver for model, driver in self._drivers.items() if driver != ref}
        return None

    async def _ensure(self, order: EnsureModel, reply: ReplyTo) -> None:
        try:
            reply.answer(await self._find(order) or await self._place(order))
        except RuntimeFault as fault:
            reply.fail(fault)

    async def _find(self, order: EnsureModel) -> Ready | None:
        """Return the driver that serves the model already, on whichever node."""
        driver = self._drivers.get(order.model) or self._served_by(order.model)
        if driver is None:
            return None
        try:
            return await self.context.ask(driver, AwaitReady(order.keep_alive), LOAD_SECONDS)
        except (ActorError, PeerUnreachable) as fault:
            logger.info("{} does not serve {} any more ({}); placing it anew", driver, order.model, fault)
            if self._drivers.get(order.model) == driver:
                del self._drivers[order.model]
            return None

    async def _place(self, order: EnsureModel) -> Ready:
        """Place the model from here, unless a peer is about to."""
        self._clock += 1
        claim = (order.model, self._clock)
        self._claims.add(claim)
        try:
            holder = await self._holder(*claim)
            driver = self._drivers.get(order.model)
            if holder is None and driver is None:
                driver = self._start_driver(order.model)
        finally:
            # Before waiting for whoever goes ahead: a claim that is given up must not hold up others.
            self._claims.discard(claim)
        if driver is not None:
            return await self.context.ask(driver, AwaitReady(order.keep_alive), LOAD_SECONDS)
        assert holder is not None  # noqa: S101 - one of the two is there
        return await self.context.ask(holder, order, LOAD_SECONDS)

    def _start_driver(self, model: str) -> ActorRef:
        self._names += 1
        driver = self.context.spawn(lambda: self._new_driver(model), f"{self._names}", Restart.TEMPORARY)
        self._drivers[model] = driver
        self.context.monitor(driver)
        return driver

    def _is_before(self, model: str, clock: int, node: str) -> bool:
        """Whether this node serves the model, or claimed it before a claim of another node."""
        return model in self._drivers or any(
            claimed == model and (at, self.context.node) < (clock, node) for claimed, at in self._claims
        )

    async def _holder(self, model: str, clock: int) -> ActorRef | None:
        """Ask all peers at once; return one that goes ahead, if any does."""
        holders = await asyncio.gather(*(self._claim(model, clock, peer) for peer in self._peers()))
        return next((holder for holder in holders if holder is not None), None)

    async def _claim(self, model: str, clock: int, peer: str) -> ActorRef | None:
        try:
            claimed = await self.context.ask(
                ActorRef(peer, f"/{MODELS}"), ClaimModel(model, self.context.node, clock), CLAIM_SECONDS
            )
        except (ActorError, PeerUnreachable) as fault:
            logger.warning("{} did not say whether it serves {}: {}", peer, model, fault)
            return None
        return claimed.by
