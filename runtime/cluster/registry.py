"""The gossip of what is served where."""

from __future__ import annotations

import asyncio

from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Message
from runtime.cluster.broadcast import broadcast
from runtime.cluster.changes import Changes
from runtime.cluster.served import ServedModel, ServedModels
from runtime.wire import Network, PeerInfo

REGISTRY = "/registry"
"""Path of the actor on every node."""
GATHER = 0.05
"""Seconds in which changes are gathered into one broadcast."""
REPEAT = 5.0
"""Seconds after which a node's entries are told again, in case a peer's mailbox was full the first time."""


class RegistryUpdate(Message, frozen=True, tag="registry.update"):
    """All entries of one node."""

    node: str
    boot: int
    version: int
    entries: tuple[ServedModel, ...]


class Registry:
    """What is served where. Construct it and :meth:`start` it before the network listens."""

    def __init__(self, system: ActorSystem, network: Network) -> None:
        self.changes = Changes()
        """Of any entry: ``await registry.changes.after(registry.changes.count)`` waits for the next."""
        self._system = system
        self._network = network
        self._models = ServedModels(system.node)
        self._told = Changes()

    def start(self) -> ActorRef:
        """Begin to watch the links, and start the actor."""
        self._network.subscribe(self._up, self._down)
        return self._system.spawn(lambda: _RegistryActor(self), REGISTRY.removeprefix("/"))

    def publish(self, entry: ServedModel) -> None:
        """Add or replace the entry of a driver of this node."""
        if self._models.publish(entry):
            self._changed_here()

    def withdraw(self, model: str, driver: ActorRef | None = None) -> None:
        """Drop this node's entry of a model, if it is this driver's when one is named."""
        if self._models.withdraw(model, driver):
            self._changed_here()

    def lookup(self, model: str) -> ServedModel | None:
        """Return the entry to use for a model, if it is served anywhere."""
        return self._models.lookup(model)

    def entries(self) -> tuple[ServedModel, ...]:
        """Everything that is served in the cluster, by model and node."""
        return self._models.entries()

    # -- for the actor ----------------------------------------------------------------------------------------------

    async def tell_peers(self) -> None:
        """Tell the peers of this node's entries, at each change and from time to time, for ever."""
        while True:
            count = self._told.count
            self._tell([peer.node for peer in self._network.peers()])
            await asyncio.sleep(GATHER)
            try:
                async with asyncio.timeout(REPEAT):
                    await self._told.after(count)
            except TimeoutError:
                continue

    def take(self, message: Message) -> None:
        """Act on what a peer says."""
        match message:
            case RegistryUpdate(node, boot, version, entries):
                peer = self._network.peer(node)
                # What was still in the mailbox when its node was lost must not come back.
                if peer is not None and peer.boot == boot and self._models.update(node, boot, version, entries):
                    self.changes.notify()
            case _:
                logger.warning("{} has no use for a {}", REGISTRY, type(message).__name__)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _changed_here(self) -> None:
        self.changes.notify()
        self._told.notify()

    def _up(self, peer: PeerInfo) -> None:
        self._tell([peer.node])

    def _down(self, node: str, reason: str) -> None:
        del reason
        if self._models.lose(node):
            self.changes.notify()

    def _tell(self, nodes: list[str]) -> None:
        models = self._models
        update = RegistryUpdate(self._system.node, self._system.boot, models.version, models.own())
        broadcast(self._system, nodes, REGISTRY, update)


class _RegistryActor(Actor):
    """Brings messages and time to the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def started(self) -> None:
        self.context.start_task(self._registry.tell_peers(), "tell peers")

    async def receive(self, message: Message) -> None:
        self._registry.take(message)
