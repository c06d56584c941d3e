"""Who is in the cluster, and in what state.

There is no master: every node keeps its own view. Addresses come from discovery and from peers, who tell each other
whom they know, so that any connected set of seeds becomes a full mesh of links. Each node tells its peers about itself,
and judges them by their signs of life: in a small cluster by pinging all (:mod:`runtime.cluster.mesh`), in a large one
by pinging some (:mod:`runtime.cluster.swim`).

A node that was declared down has lost its session, and with it all that was under way. It is accepted again with a new
session, never within the old one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Message
from runtime.cluster.addresses import AddressBook
from runtime.cluster.broadcast import broadcast
from runtime.cluster.detector import DetectorSettings, PeerState
from runtime.cluster.liveness import Change, Effects, Liveness, Ping, PingRequest, Pong
from runtime.cluster.mesh import Mesh
from runtime.cluster.node_info import NodeInfo, NodeProfile
from runtime.cluster.reach import all_linked
from runtime.cluster.swim import Swim
from runtime.spi import Discovery, NodeView
from runtime.wire import DialState, DialStatus, Network, PeerInfo

MEMBERSHIP = "/membership"
"""Path of the actor on every node."""
REPORT_INTERVAL = 2.0
"""Seconds between two reports of a node about itself when nothing but its memory changes; longer in a large cluster."""
DISCOVERY_RETRY = 5.0
"""Seconds after which a discovery that failed or ended is asked again."""
REMEMBERED = 64
"""Nodes that are down and still listed."""
MESH_NODES = 16
"""Nodes up to which ``auto`` pings all of them."""
MESH_AGAIN = 12
"""Nodes at which it does so again: a node that comes and goes must not change the protocol each time."""
PAUSE = 3.0
"""Seconds for which a pause is announced at once. So long may the event loop stand still beyond what it may at any
time; and so much later a machine is given up that froze while it was loading, with generations that wait for it."""
PAUSE_RENEWAL = 1.0
"""Seconds after which it is announced again while it lasts."""

Mode = Literal["mesh", "swim", "auto"]
"""How peers are judged: all of them pinged, some of them, or as the size of the cluster asks for."""


class NodeReport(Message, frozen=True, tag="cluster.report"):
    """What a node tells of itself, and where its peers listen."""

    node: str
    profile: NodeProfile
    peers: tuple[str, ...]
    lost: tuple[str, ...] = ()
    """Nodes that are down by its view. Others may reach them: then it is a link that is broken."""


class _Member:
    """What is kept of one peer."""

    def __init__(self, peer: PeerInfo, now: float) -> None:
        self.peer = peer
        self.state = PeerState.UP
        self.profile: NodeProfile | None = None
        self.seen = now
        self.reason: str | None = None
        self.lost: frozenset[str] = frozenset()
        """Nodes that it does not reach."""

    @property
    def linked(self) -> bool:
        return self.state is not PeerState.DOWN


class Membership:
    """Owns the peers of a node. :meth:`start` it before the network listens; it ends with the system."""

    def __init__(
        self,
        system: ActorSystem,
        network: Network,
        discovery: Discovery,
        profile: Callable[[], NodeProfile],
        settings: DetectorSettings | None = None,
        mode: Mode = "auto",
        chance: random.Random | None = None,
    ) -> None:
        """``profile`` is called on the event loop, a few times a second, and must return at once.

        ``chance`` chooses which peers are asked for what.
        """
        self._system = system
        self._network = network
        self._discovery = discovery
        self._profile = profile
        self._settings = settings or DetectorSettings()
        self._mode = mode
        # From the global generator, so that a simulation that seeds that one runs the same again.
        self._chance = chance or random.Random(random.getrandbits(64))  # noqa: S311 - it chooses peers, not secrets
        self._members: dict[str, _Member] = {}
        self._book = AddressBook()
        self._listeners: list[Callable[[NodeInfo], None]] = []
        self._reported: tuple[NodeProfile, float] | None = None
        self._liveness: Liveness = self._mesh() if mode != "swim" else self._swim()
        self._pauses = 0
        self._announced = float("-inf")

    # -- for the node -----------------------------------------------------------------------------------------------

    def start(self) -> ActorRef:
        """Begin to watch the links, and start the actor that discovers, dials and reports."""
        self._network.subscribe(self._up, self._down)
        return self._system.spawn(lambda: _MembershipActor(self), MEMBERSHIP.removeprefix("/"))

    def members(self) -> tuple[NodeInfo, ...]:
        """This node first, then every other that is or was in the cluster, by name."""
        now = self._system.now()
        others = (self._info(member, now) for _, member in sorted(self._members.items()))
        return (self._self_info(), *others)

    def member(self, node: str) -> NodeInfo | None:
        """One node, if it is or was in the cluster."""
        if node == self._system.node:
            return self._self_info()
        member = self._members.get(node)
        return self._info(member, self._system.now()) if member else None

    def views(self) -> tuple[NodeView, ...]:
        """The nodes that can be given layers together, this one first.

        A suspect node still counts, and an unhealthy one not. Of two that do not reach each other it is the one with
        more memory.
        """
        views = tuple(view for view in (info.view() for info in self.members()) if view is not None)
        return all_linked(views, frozenset(self._broken()), self._system.node)

    def live(self) -> tuple[str, ...]:
        """The nodes that can be talked to, this one first, healthy or not."""
        return tuple(info.name for info in self.members() if info.state is not PeerState.DOWN and info.profile)

    def unreached(self) -> tuple[DialStatus, ...]:
        """Addresses that are dialled without success, and why."""
        return tuple(status for status in self._network.dials() if status.state is DialState.FAILED)

    def subscribe(self, listener: Callable[[NodeInfo], None]) -> Callable[[], None]:
        """Be called at each change of a peer's state, and when it becomes unhealthy or healthy again, once a change;
        return what ends that.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Have the peers expect silence for the length of the block, because this node is about to be very busy.

        Blocks may overlap. A crash meanwhile is noticed by its closed connections as ever; one that leaves them open
        is noticed when the announcement has run out, up to :data:`PAUSE` later.
        """
        self._pauses += 1
        self._announce_pause()
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._announce_pause()

    def report(self) -> None:
        """Tell the peers about this node now, because something has changed."""
        self._reported = (self._report_to(self._linked()), self._system.now())

    # -- for the actor ----------------------------------------------------------------------------------------------

    async def discover(self) -> None:
        """Follow the discovery for ever."""
        while True:
            try:
                async for found in self._discovery.addresses():
                    self._book.discovered = found
                    self._dial()
            except Exception as error:  # noqa: BLE001 - a plugin's failure must not take the membership with it
                logger.opt(exception=error).error(
                    "discovery failed and is asked again in {:g} s; known peers stay", DISCOVERY_RETRY
                )
            await asyncio.sleep(DISCOVERY_RETRY)

    async def watch(self) -> None:
        """Judge the peers, and give them signs of life."""
        while True:
            self.tick(self._system.now())
            await asyncio.sleep(self._settings.heartbeat)

    def tick(self, now: float) -> None:
        """Do what is due at this time."""
        self._choose_protocol(now)
        for node, member in self._members.items():
            received = self._network.last_received(node)
            if received is not None:
                member.seen = received
                self._liveness.heard(node, received)
                self._book.linked(member.peer.address, now)
        self._apply(self._liveness.tick(now))
        if self._pauses and now - self._announced >= PAUSE_RENEWAL:
            self._announce_pause()
        if self._is_report_due(now):
            self.report()
            self._book.forget(now)
            self._dial()

    def take(self, message: Message) -> None:
        """Act on what a peer says."""
        match message:
            case Ping() | Pong() | PingRequest():
                self._apply(self._liveness.receive(message, self._system.now()))
            case NodeReport():
                self._reported_by(message)
            case _:
                logger.warning("{} has no use for a {}", MEMBERSHIP, type(message).__name__)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _broken(self) -> Iterator[frozenset[str]]:
        """Yield the pairs of linked nodes of which one says that it does not reach the other."""
        for node, member in self._members.items():
            if member.linked:
                yield from (frozenset((node, other)) for other in member.lost)

    def _lost(self) -> tuple[str, ...]:
        return tuple(sorted(node for node, member in self._members.items() if not member.linked))

    def _up(self, peer: PeerInfo) -> None:
        now = self._system.now()
        self._members[peer.node] = _Member(peer, now)
        self._liveness.add(peer.node, peer.boot, now)
        self._book.linked(peer.address, now)
        self._tell_listeners(peer.node)
        # In a mesh to all of them: the others learn of the new one's address, and the mesh closes at once.
        self._report_to(self._linked() if isinstance(self._liveness, Mesh) else [peer.node])

    def _down(self, node: str, reason: str) -> None:
        member = self._members.get(node)
        if member is None or not member.linked:
            return
        self._liveness.remove(node)
        member.state, member.reason = PeerState.DOWN, reason
        down = [name for name, other in self._members.items() if not other.linked and name != node]
        if len(down) >= REMEMBERED:
            del self._members[min(down, key=lambda name: self._members[name].seen)]
        self._tell_listeners(node)
        if isinstance(self._liveness, Mesh):
            # At once: whoever reaches both should put no layers on both.
            self._report_to(self._linked())

    def _apply(self, effects: Effects) -> None:
        for node, message in effects.sends:
            broadcast(self._system, [node], MEMBERSHIP, message)
        for change in effects.changes:
            self._change(change)

    def _change(self, change: Change) -> None:
        node, member = change.node, self._members[change.node]
        match change.state:
            case PeerState.DOWN:
                logger.warning("node {} is down: {}", node, change.reason)
                self._network.disconnect(node, change.reason or "it is down")
                return  # the end of the session makes it so
            case PeerState.SUSPECT:
                logger.warning("node {} is suspect: {}", node, change.reason)
            case PeerState.UP:
                logger.info("node {} is heard again", node)
        member.state, member.reason = change.state, change.reason
        self._tell_listeners(node)

    def _choose_protocol(self, now: float) -> None:
        """In mode ``auto``, change the protocol when the cluster has grown or shrunk far enough."""
        nodes = 1 + sum(member.linked for member in self._members.values())
        is_mesh = isinstance(self._liveness, Mesh)
        if self._mode != "auto" or (nodes <= MESH_NODES if is_mesh else nodes > MESH_AGAIN):
            return
        self._liveness = self._swim() if is_mesh else self._mesh()
        logger.info("{} nodes are linked: {} of them are pinged from now on", nodes, "some" if is_mesh else "all")
        for node, member in self._members.items():
            if member.linked:
                self._liveness.add(node, member.peer.boot, now)
                if member.state is PeerState.SUSPECT:
                    self._change(Change(node, PeerState.UP))
        if self._pauses:
            self._announce_pause()

    def _mesh(self) -> Mesh:
        return Mesh(self._system.node, self._system.boot, self._settings, self._chance)

    def _swim(self) -> Swim:
        return Swim(self._system.node, self._system.boot, self._settings, self._chance, self._system.now())

    def _announce_pause(self) -> None:
        self._announced = self._system.now()
        self._apply(self._liveness.pausing(PAUSE if self._pauses else 0.0, self._announced))

    def _reported_by(self, report: NodeReport) -> None:
        node = report.node
        member = self._members.get(node)
        if member is None or not member.linked:
            return
        was_unhealthy = member.profile is not None and member.profile.unhealthy is not None
        member.profile, member.lost = report.profile, frozenset(report.lost)
        if (report.profile.unhealthy is not None) != was_unhealthy:
            self._tell_listeners(node)
        if self._book.learn(report.peers, self._system.now()):
            self._dial()

    def _is_report_due(self, now: float) -> bool:
        if self._reported is None:
            return True
        told, at = self._reported
        profile = self._profile()
        # What the machine has left changes all the time; what its ledger has granted is told at once.
        same = msgspec.structs.replace(profile, memory=told.memory) == told
        # Each node hears as many reports a second as in a mesh, however many nodes there are.
        interval = REPORT_INTERVAL * max(1.0, len(self._members) / MESH_NODES)
        return now - at >= interval or not same or profile.memory.reserved != told.memory.reserved

    def _report_to(self, nodes: list[str]) -> NodeProfile:
        profile = self._profile()
        known = tuple(sorted(peer.address for peer in self._network.peers() if peer.address))
        broadcast(self._system, nodes, MEMBERSHIP, NodeReport(self._system.node, profile, known, self._lost()))
        return profile

    def _dial(self) -> None:
        self._network.dial(self._book.wanted() - {self._network.address})

    def _linked(self) -> list[str]:
        return [peer.node for peer in self._network.peers()]

    def _tell_listeners(self, node: str) -> None:
        info = self.member(node)
        if info is not None:
            for listener in list(self._listeners):
                listener(info)

    def _info(self, member: _Member, now: float) -> NodeInfo:
        peer = member.peer
        return NodeInfo(
            name=peer.node,
            boot=peer.boot,
            address=peer.address,
            state=member.state,
            profile=member.profile,
            rtt=self._liveness.rtt(peer.node),
            phi=self._liveness.phi(peer.node, now),
            last_seen=max(0.0, now - member.seen),
            reason=member.reason or self._cut_text(member),
            local=False,
        )

    def _cut_text(self, member: _Member) -> str | None:
        """Return which nodes a peer does not reach though this one does; None if there are none."""
        cut = sorted(name for name in member.lost if (other := self._members.get(name)) is not None and other.linked)
        return f"it does not reach {', '.join(cut)}" if cut and member.linked else None

    def _self_info(self) -> NodeInfo:
        system = self._system
        return NodeInfo(
            name=system.node,
            boot=system.boot,
            address=self._network.address,
            state=PeerState.UP,
            profile=self._profile(),
            rtt=None,
            phi=None,
            last_seen=0.0,
            reason=None,
            local=True,
        )


class _MembershipActor(Actor):
    """Brings messages and time to the membership."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def started(self) -> None:
        self.context.start_task(self._membership.discover(), "discover")
        self.context.start_task(self._membership.watch(), "watch")

    async def receive(self, message: Message) -> None:
        self._membership.take(message)
