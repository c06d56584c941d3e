"""Whole cluster nodes on loopback, within the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from runtime.cluster import DetectorSettings, Ledger, Membership, NodeInfo, NodeProfile, PeerState, Registry
from runtime.cluster.membership import Mode
from runtime.spi import Discovery, NodeMemory
from tests.wire.loopback import Node

BRISK = DetectorSettings(
    heartbeat=0.05, least_deviation=0.05, acceptable_pause=0.5, longest_silence=1.0, probe_timeout=0.3
)


class Seeds(Discovery):
    """Fixed addresses."""

    def __init__(self, addresses: frozenset[str]) -> None:
        self._addresses = addresses

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        yield self._addresses
        await anyio.sleep_forever()


class ClusterNode(Node):
    """A node with everything that the cluster puts on it."""

    def __init__(
        self, name: str, discovery: Discovery, settings: DetectorSettings = BRISK, mode: Mode = "auto"
    ) -> None:
        super().__init__(name)
        self.memory = NodeMemory(total=1000, available=800, reserve=100)
        self.held = 0
        """Bytes that its models have taken."""
        self.unhealthy: str | None = None
        """What it tells of its compute thread."""
        self.ledger = Ledger(self.system, lambda: self.memory, lambda: self.held)
        self.registry = Registry(self.system, self.network)
        self.membership = Membership(self.system, self.network, discovery, self.profile, settings, mode)
        self.changes: list[NodeInfo] = []
        self.membership.subscribe(self.changes.append)
        for part in (self.ledger, self.registry, self.membership):
            part.start()

    def profile(self) -> NodeProfile:
        return NodeProfile("0.1.0", "cpu", self.ledger.memory(), ("dense",), self.unhealthy)

    def sees(self) -> dict[str, PeerState]:
        """The state of each node, this one too."""
        return {info.name: info.state for info in self.membership.members()}

    def told(self, node: str) -> NodeMemory | None:
        """What another node has told of its memory."""
        info = self.membership.member(node)
        return info.profile.memory if info and info.profile else None


@asynccontextmanager
async def cluster(*names: str, mode: Mode = "auto") -> AsyncIterator[list[ClusterNode]]:
    """Nodes of which each knows only the one before it."""
    made: list[ClusterNode] = []
    try:
        for name in names:
            seeds = frozenset({made[-1].address}) if made else frozenset[str]()
            node = ClusterNode(name, Seeds(seeds), mode=mode)
            made.append(node)
            await node.network.listen("127.0.0.1", 0)
        yield made
    finally:
        for node in made:
            await node.stop()


__all__ = ["BRISK", "ClusterNode", "Seeds", "cluster"]
