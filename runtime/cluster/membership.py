"""Who is in the cluster, and in what state.

There is no master: every node keeps its own view. Addresses come from discovery and from peers, who tell each other
whom they know, so that any connected set of seeds becomes a full mesh. Each node tells its peers about itself, and
judges each of them by its signs of life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Message
from runtime.cluster.addresses import AddressBook
from runtime.cluster.broadcast import broadcast
from runtime.cluster.detector import DetectorSettings, FailureDetector, PeerState
from runtime.spi import Discovery, NodeMemory, NodeView
from runtime.wire import DialState, DialStatus, Network, PeerInfo

MEMBERSHIP = "/membership"
"""Path of the actor on every node."""
REPORT_INTERVAL = 2.0
"""Seconds between two reports of a node about itself when nothing but its memory changes."""
DISCOVERY_RETRY = 5.0
"""Seconds after which a discovery that failed or ended is asked again."""
REMEMBERED = 64
"""Nodes that are down and still listed."""


class NodeProfile(msgspec.Struct, frozen=True):
    """What a node tells of itself."""

    version: str
    """Of the runtime."""
    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    memory: NodeMemory
    families: tuple[str, ...] = ()
    """Model family plugins that it has."""


class NodeInfo(msgspec.Struct, frozen=True):
    """One node as this one sees it."""

    name: str
    boot: int
    """Milliseconds since the epoch at its start."""
    address: str
    state: PeerState
    profile: NodeProfile | None
    """None until it has told."""
    rtt: float | None
    """Seconds from a heartbeat to its echo, smoothed; None until measured, and for this node itself."""
    last_seen: float
    """Seconds since its last sign of life, at the time of asking."""
    reason: str | None
    """Why it is down."""
    local: bool
    """Whether it is this node itself."""

    def view(self) -> NodeView | None:
        """What a placement policy sees of the node; None if it is not up or has not told."""
        if self.state is PeerState.DOWN or self.profile is None:
            return None
        return NodeView(self.name, self.profile.memory, self.profile.backend, self.profile.families)


class Heartbeat(Message, frozen=True, tag="cluster.heartbeat"):
    """A sign of life; answered with :class:`HeartbeatEcho`. ``sent`` is on the sender's own clock."""

    node: str
    sent: float


class HeartbeatEcho(Message, frozen=True, tag="cluster.heartbeat_echo"):
    """The answer to a heartbeat."""

    node: str
    sent: float


class NodeReport(Message, frozen=True, tag="cluster.report"):
    """What a node tells of itself, and where its peers listen."""

    node: str
    profile: NodeProfile
    peers: tuple[str, ...]


class Pausing(Message, frozen=True, tag="cluster.pausing"):
    """The node may be silent for so many seconds; zero takes it back."""

    node: str
    seconds: float


class _Member:
    """What is kept of one peer."""

    def __init__(self, peer: PeerInfo, detector: FailureDetector, now: float) -> None:
        self.peer = peer
        self.detector: FailureDetector | None = detector
        self.profile: NodeProfile | None = None
        self.rtt: float | None = None
        self.seen = now
        self.reason: str | None = None

    @property
    def state(self) -> PeerState:
        return self.detector.state if self.detector else PeerState.DOWN


class Membership:
    """Owns the peers of a node. :meth:`start` it before the network listens; it ends with the system."""

    def __init__(
        self,
        system: ActorSystem,
        network: Network,
        discovery: Discovery,
        profile: Callable[[], NodeProfile],
        settings: DetectorSettings | None = None,
    ) -> None:
        """``profile`` is called on the event loop, a few times a second, and must return at once."""
        self._system = system
        self._network = network
        self._discovery = discovery
        self._profile = profile
        self._settings = settings or DetectorSettings()
        self._members: dict[str, _Member] = {}
        self._book = AddressBook()
        self._listeners: list[Callable[[NodeInfo], None]] = []
        self._reported: tuple[NodeProfile, float] | None = None

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
        """The nodes that can be given work, this one first. A suspect node still counts."""
        views = (info.view() for info in self.members())
        return tuple(view for view in views if view is not None)

    def unreached(self) -> tuple[DialStatus, ...]:
        """Addresses that are dialled without success, and why."""
        return tuple(status for status in self._network.dials() if status.state is DialState.FAILED)

    def subscribe(self, listener: Callable[[NodeInfo], None]) -> Callable[[], None]:
        """Be called at each change of a peer's state, once a change; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def announce_pause(self, seconds: float) -> None:
        """Tell the peers that this node may be silent for a while; zero when it is back before."""
        broadcast(self._system, self._linked(), MEMBERSHIP, Pausing(self._system.node, seconds))

    def report(self) -> None:
        """Tell the peers about this node now, because something has changed."""
        profile = self._profile()
        known = tuple(sorted(peer.address for peer in self._network.peers() if peer.address))
        broadcast(self._system, self._linked(), MEMBERSHIP, NodeReport(self._system.node, profile, known))
        self._reported = (profile, self._system.now())

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
        for node, member in list(self._members.items()):
            if member.detector is not None:
                self._judge(node, member, member.detector, now)
        broadcast(self._system, self._linked(), MEMBERSHIP, Heartbeat(self._system.node, now))
        if self._is_report_due(now):
            self.report()
            self._book.forget(now)
            self._dial()

    def take(self, message: Message) -> None:
        """Act on what a peer says."""
        match message:
            case Heartbeat(node, sent):
                broadcast(self._system, [node], MEMBERSHIP, HeartbeatEcho(self._system.node, sent))
            case HeartbeatEcho(node, sent):
                self._echoed(node, self._system.now() - sent)
            case NodeReport(node, profile, peers):
                self._reported_by(node, profile, peers)
            case Pausing(node, seconds):
                member = self._members.get(node)
                if member is not None and member.detector is not None:
                    member.detector.pause(self._system.now(), seconds)
            case _:
                logger.warning("{} has no use for a {}", MEMBERSHIP, type(message).__name__)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _up(self, peer: PeerInfo) -> None:
        now = self._system.now()
        self._members[peer.node] = _Member(peer, FailureDetector(self._settings, now), now)
        self._book.linked(peer.address, now)
        self._tell_listeners(peer.node)
        # To all of them: the others learn of the new one's address, and the mesh closes at once.
        self.report()

    def _down(self, node: str, reason: str) -> None:
        member = self._members.get(node)
        if member is None or member.detector is None:
            return
        member.detector = None
        member.reason = reason
        down = [name for name, other in self._members.items() if other.detector is None and name != node]
        if len(down) >= REMEMBERED:
            del self._members[min(down, key=lambda name: self._members[name].seen)]
        self._tell_listeners(node)

    def _judge(self, node: str, member: _Member, detector: FailureDetector, now: float) -> None:
        received = self._network.last_received(node)
        if received is not None:
            member.seen = received
            detector.heard(received)
            self._book.linked(member.peer.address, now)
        match detector.tick(now):
            case PeerState.DOWN:
                reason = f"no sign of life for {detector.silence(now):.0f} s"
                logger.warning("node {} is down: {}", node, reason)
                self._network.disconnect(node, reason)
            case PeerState.SUSPECT:
                logger.warning("node {} is suspect: no sign of life for {:.0f} s", node, detector.silence(now))
                self._tell_listeners(node)
            case PeerState.UP:
                logger.info("node {} is heard again", node)
                self._tell_listeners(node)
            case None:
                pass

    def _echoed(self, node: str, sample: float) -> None:
        member = self._members.get(node)
        if member is not None and sample >= 0:
            # The smoothing of TCP's round-trip time (RFC 6298, 2.3).
            member.rtt = sample if member.rtt is None else member.rtt + (sample - member.rtt) / 8

    def _reported_by(self, node: str, profile: NodeProfile, peers: tuple[str, ...]) -> None:
        member = self._members.get(node)
        if member is None or member.detector is None:
            return
        member.profile = profile
        if self._book.learn(peers, self._system.now()):
            self._dial()

    def _is_report_due(self, now: float) -> bool:
        if self._reported is None:
            return True
        told, at = self._reported
        profile = self._profile()
        # What the machine has left changes all the time; what its ledger has granted is told at once.
        same = msgspec.structs.replace(profile, memory=told.memory) == told
        return now - at >= REPORT_INTERVAL or not same or profile.memory.reserved != told.memory.reserved

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
        seen = max(0.0, now - member.seen)
        return NodeInfo(
            peer.node, peer.boot, peer.address, member.state, member.profile, member.rtt, seen, member.reason, False
        )

    def _self_info(self) -> NodeInfo:
        system = self._system
        return NodeInfo(
            system.node, system.boot, self._network.address, PeerState.UP, self._profile(), None, 0.0, None, True
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
