"""Nodes on loopback, within the test's own process: real sockets, one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Down, Message
from runtime.wire import Limits, Network, PeerInfo
from runtime.wire.connection import Medium
from runtime.wire.websocket import WebSockets

FAST = Limits(handshake=2.0, retry_first=0.02, retry_most=0.1, retry_lasting=0.3, close=0.5)
DEADLINE = 60.0
"""Seconds, of a machine that does much else: only a bug takes longer."""


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so; fail when it is not within the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - polled, because it looks at several parts from outside
            await asyncio.sleep(0.005)


class Node:
    """One node, with what its network told."""

    def __init__(self, name: str, key: bytes = b"", limits: Limits = FAST, medium: Medium | None = None) -> None:
        self.system = ActorSystem(name)
        self.network = Network(self.system, key=key, limits=limits, medium=medium or WebSockets(limits))
        self.ups: list[PeerInfo] = []
        self.downs: list[tuple[str, str]] = []
        self.network.subscribe(self.ups.append, lambda node, reason: self.downs.append((node, reason)))

    @property
    def name(self) -> str:
        return self.system.node

    @property
    def address(self) -> str:
        return self.network.address

    def dial(self, *addresses: str) -> None:
        self.network.dial(frozenset(addresses))

    def linked(self) -> list[str]:
        return sorted(peer.node for peer in self.network.peers())

    async def stop(self) -> None:
        await self.system.shut_down(0.5)
        await self.network.close(0.5)


@asynccontextmanager
async def nodes(*names: str, key: bytes = b"", limits: Limits = FAST) -> AsyncIterator[list[Node]]:
    """Nodes that listen and have not dialled."""
    made = [Node(name, key, limits) for name in names]
    try:
        for node in made:
            await node.network.listen("127.0.0.1", 0)
        yield made
    finally:
        for node in made:
            await node.stop()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that are linked."""
    async with nodes("a", "b") as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        yield a, b


class Observer(Actor):
    """Monitors one actor, and keeps what it hears."""

    def __init__(self, target: ActorRef, heard: list[Down]) -> None:
        self._target = target
        self._heard = heard

    async def started(self) -> None:
        self.context.monitor(self._target)

    async def receive(self, message: Message) -> None:
        if isinstance(message, Down):
            self._heard.append(message)


@asynccontextmanager
async def log_lines(level: str) -> AsyncIterator[list[str]]:
    """What is logged at this level or above."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level=level, format="{message}")
    try:
        yield lines
    finally:
        logger.remove(sink)
