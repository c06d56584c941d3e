"""One life of a simulated node: the real actor system, network and cluster parts, on a simulated machine."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import msgspec

from runtime.actors import Actor, ActorRef, ActorSystem, Restart
from runtime.cluster import DetectorSettings, Ledger, Membership, NodeInfo, NodeProfile, PeerState, Registry
from runtime.spi import Discovery, NodeMemory
from runtime.testing.simulation.process import Process
from runtime.wire import Limits, Network
from runtime.wire.connection import Medium

PORT = 7878
"""Where every simulated node listens; its host is its name."""

T = TypeVar("T")


class NodeSettings(msgspec.Struct, frozen=True):
    """What all nodes of a simulation are made with."""

    detector: DetectorSettings = DetectorSettings()
    limits: Limits = Limits()
    key: bytes = b"simulated"
    memory: NodeMemory = NodeMemory(total=16 << 30, available=12 << 30, reserve=1 << 30)


class _Seeds(Discovery):
    """Fixed addresses."""

    def __init__(self, addresses: frozenset[str]) -> None:
        self._addresses = addresses

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        yield self._addresses
        await anyio.sleep_forever()


class SimulatedNode:
    """A node from its start to its crash. Made by :meth:`Simulation.start` and :meth:`Simulation.restart`."""

    system: ActorSystem
    network: Network
    membership: Membership
    registry: Registry
    ledger: Ledger

    def __init__(
        self,
        name: str,
        medium: Medium,
        seeds: frozenset[str],
        boot: int,
        settings: NodeSettings,
        changed: Callable[[SimulatedNode, NodeInfo], None],
    ) -> None:
        self.name = name
        self.process = Process(name)
        self.alive = True
        """False from its crash on."""
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self.process.call(self._assemble, medium, seeds, boot, changed)

    @property
    def address(self) -> str:
        """Where its peers reach it."""
        return address_of(self.name)

    def sees(self) -> dict[str, PeerState]:
        """The state of each node in its own view; itself included."""
        return {info.name: info.state for info in self.membership.members()}

    def spawn(self, factory: Callable[[], Actor], name: str, *, restart: Restart = Restart.PERMANENT) -> ActorRef:
        """Start an actor on it; see :meth:`runtime.actors.ActorSystem.spawn`. Start none from outside of it."""
        return self.process.call(lambda: self.system.spawn(factory, name, restart=restart))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on it, and wait for it. On a node that has crashed it never ends."""
        return await self.process.run(work)

    def stall(self, seconds: float) -> None:
        """Stop its process for a while, as SIGSTOP does; its connections stay, and its kernel goes on receiving."""
        self.process.freeze()
        self._loop.call_later(seconds, self._go_on, context=contextvars.Context())

    async def listen(self) -> None:
        """Begin to accept peers."""
        await self.process.run(self.network.listen(self.name, PORT))

    async def take_apart(self) -> None:
        """Let go of everything, also of a crashed node's remains. For the end of a simulation."""
        self.process.thaw()
        await self.process.run(self.system.shut_down(0))
        await self.process.run(self.network.close(0))

    def _assemble(
        self, medium: Medium, seeds: frozenset[str], boot: int, changed: Callable[[SimulatedNode, NodeInfo], None]
    ) -> None:
        settings = self._settings
        # From the global generator, which the simulation has seeded.
        jitter = random.Random(random.getrandbits(64))  # noqa: S311 - jitter, not a secret
        self.system = ActorSystem(self.name, boot=boot, jitter=jitter)
        self.network = Network(self.system, key=settings.key, limits=settings.limits, medium=medium)
        self.ledger = Ledger(self.system, lambda: settings.memory)
        self.registry = Registry(self.system, self.network)
        self.membership = Membership(self.system, self.network, _Seeds(seeds), self._profile, settings.detector)
        self.membership.subscribe(lambda info: changed(self, info))
        for part in (self.ledger, self.registry, self.membership):
            part.start()

    def _profile(self) -> NodeProfile:
        return NodeProfile("simulated", "cpu", self.ledger.memory())

    def _go_on(self) -> None:
        if self.alive:
            self.process.thaw()


def address_of(name: str) -> str:
    """Return the address of the node of this name."""
    return f"{name}:{PORT}"
