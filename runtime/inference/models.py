"""Which driver serves a model: every node's actor that finds one, or makes one.

There is no master. A node that wants a model asks its peers before it places it; of nodes that want the same one at
the same moment, the one with the lowest name goes ahead and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable

from loguru import logger

from runtime.actors import Actor, ActorRef, Down, Message, ReplyTo, Restart
from runtime.errors import ActorError, PeerUnreachable, RuntimeFault
from runtime.inference.driver import Driver
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
        new_driver: Callable[[str], Driver],
        served_by: Callable[[str], ActorRef | None],
        peers: Callable[[], list[str]],
    ) -> None:
        self._new_driver = new_driver
        self._served_by = served_by
        self._peers = peers
        self._drivers: dict[str, ActorRef] = {}
        self._claims: set[str] = set()
        self._names = 0

    async def receive(self, message: Message) -> Message | None:
        """Serve a model, or say who does."""
        match message:
            case EnsureModel():
                self.context.start_task(self._ensure(message, self.context.reply_later()), f"ensure {message.model}")
            case ClaimModel(model, node):
                ours = model in self._drivers or (model in self._claims and self.context.node < node)
                return Claimed(self.context.self_ref if ours else None)
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
        self._claims.add(order.model)
        try:
            for peer in self._peers():
                holder = await self._claim(order.model, peer)
                if holder is not None:
                    return await self.context.ask(holder, order, LOAD_SECONDS)
            driver = self._drivers.get(order.model)
            if driver is None:
                self._names += 1
                driver = self.context.spawn(lambda: self._new_driver(order.model), f"{self._names}", Restart.TEMPORARY)
                self._drivers[order.model] = driver
                self.context.monitor(driver)
        finally:
            self._claims.discard(order.model)
        return await self.context.ask(driver, AwaitReady(order.keep_alive), LOAD_SECONDS)

    async def _claim(self, model: str, peer: str) -> ActorRef | None:
        try:
            claimed = await self.context.ask(
                ActorRef(peer, f"/{MODELS}"), ClaimModel(model, self.context.node), CLAIM_SECONDS
            )
        except (ActorError, PeerUnreachable) as fault:
            logger.warning("{} did not say whether it serves {}: {}", peer, model, fault)
            return None
        return claimed.by
