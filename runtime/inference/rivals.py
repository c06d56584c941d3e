"""Two drivers of one model: what two parts of a cluster that were cut apart come to have, once they are joined again.

One is enough. The other gives way: it finishes what it has begun and takes on nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loguru import logger

from runtime.actors import Actor, ActorRef, Message
from runtime.cluster import Registry, ServedModel, ServedState
from runtime.errors import RuntimeFault
from runtime.inference.protocol import GiveWay

RIVALS = "rivals"
"""Path of every node's :class:`Rivals`."""


def giving_way(entries: Sequence[ServedModel], node: str) -> Iterator[tuple[ServedModel, ActorRef]]:
    """Yield a node's entries that have a better one for the same model elsewhere, each with the driver of that. Pure.

    The better one has more stages, or the lower name where they have as many. Neither ever changes, so that all nodes
    think the same, whatever they have heard last.
    """
    ready = [entry for entry in entries if entry.state is ServedState.READY]
    for entry in ready:
        if entry.driver.node != node:
            continue
        best = min((each for each in ready if each.model == entry.model), key=_rank)
        if best.driver != entry.driver:
            yield entry, best.driver


def _rank(entry: ServedModel) -> tuple[int, str]:
    return -len(entry.stages), entry.driver.node


class Rivals(Actor):
    """Tells drivers of its node to give way."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def started(self) -> None:
        """Begin to follow what is served."""
        self.context.start_task(self._follow(), "follow")

    async def receive(self, message: Message) -> None:
        """Nobody sends anything."""

    async def _follow(self) -> None:
        while True:
            count = self._registry.changes.count
            for entry, better in giving_way(self._registry.entries(), self.context.node):
                try:
                    self.context.tell(entry.driver, GiveWay(better))
                except RuntimeFault as fault:
                    logger.debug("{} is not told to give way: {}", entry.driver, fault)
            await self._registry.changes.after(count)
