"""Actor systems joined by a transport that encodes nothing: what crosses nodes, without sockets."""

from __future__ import annotations

import asyncio

from runtime.actors import ActorSystem, Lane, Signal
from runtime.errors import PeerUnreachable, RuntimeFault


class Network:
    """Carries signals between systems in order, a turn of the loop later; a cut loses what is under way."""

    def __init__(self, *names: str) -> None:
        self.systems = {name: ActorSystem(name) for name in names}
        self.sent: list[tuple[Signal, Lane]] = []
        self.refusal: dict[type[Signal], RuntimeFault] = {}
        self.up = True
        self.session = 0
        for name, system in self.systems.items():
            system.join(_Link(self, name))

    def carry(self, source: str, node: str, signal: Signal, lane: Lane) -> None:
        if not self.up:
            raise PeerUnreachable(f"there is no link to {node}")
        if type(signal) in self.refusal:
            raise self.refusal[type(signal)]
        self.sent.append((signal, lane))
        asyncio.get_running_loop().call_soon(self._arrive, self.session, source, node, signal)

    def _arrive(self, session: int, source: str, node: str, signal: Signal) -> None:
        if session == self.session:
            self.systems[node].deliver(source, signal)

    def cut(self) -> None:
        self.up = False
        self.session += 1
        for system in self.systems.values():
            for other in self.systems:
                if other != system.node:
                    system.node_lost(other)

    async def shut_down(self) -> None:
        for system in self.systems.values():
            await system.shut_down(1.0)

    def assert_nothing_kept(self) -> None:
        for system in self.systems.values():
            assert not system._monitors.watchers
            assert not system._monitors.remote
            assert not system._asks.pending
            assert not system._asks.serving


class _Link:
    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name

    def send(self, node: str, signal: Signal, lane: Lane) -> None:
        self.network.carry(self.name, node, signal, lane)

    async def room(self, node: str, lane: Lane) -> None:
        await settle()


async def settle() -> None:
    await asyncio.sleep(0.001)
