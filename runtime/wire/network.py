"""The transport between nodes: listens, dials, and keeps one link to each peer.

Two nodes may dial each other at the same moment. Of the two, the one with the lower name decides which session is
used: it alone says *ready*, on the control lane, and only while it has no link to the other. Both sides therefore
always agree, whichever way the race goes, and no link is taken down that was ever up.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from loguru import logger

from runtime.actors import ActorRef, ActorSystem, Ask, Gone, Lane, Signal, Tell, Unwatch, Watch
from runtime.errors import ConfigError, PeerUnreachable, ProtocolError
from runtime.wire.address import format_address, parse_address, reachable_address
from runtime.wire.connection import GOING_AWAY, Connection, Listener, Medium
from runtime.wire.dialling import Dialling, DialStatus
from runtime.wire.handshake import NODE_NAME, Acceptor, Identity, Refusal, Refused, name_text
from runtime.wire.limits import Limits
from runtime.wire.link import Link, PeerInfo
from runtime.wire.opening import READY, authenticate, await_ready, introduce
from runtime.wire.session import LaneTraffic
from runtime.wire.websocket import WebSockets

QUIET = 30.0
"""Seconds in which the refusal of one host for one reason is logged once."""

_ADDRESSED = frozenset({Tell, Ask, Watch, Unwatch, Gone})
"""Kinds of signals that name an actor: of the node that receives them, but for Gone, which is about the sender's."""


class _HalfOpen:
    """An accepted control connection that waits for its bulk connection."""

    def __init__(self, peer: PeerInfo) -> None:
        self.peer = peer
        self.bulk: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def join(self, control: Connection) -> Connection:
        """Wait for the bulk connection, or for the end of the control connection.

        Raises:
            ConnectionAbortedError: the control connection was closed first.
        """
        gone = asyncio.ensure_future(control.wait_closed())
        either: list[asyncio.Future[Any]] = [self.bulk, gone]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self.bulk.done():
            raise ConnectionAbortedError("the dialler gave the session up")
        return self.bulk.result()


class Network:
    """Carries signals between the actor systems of a cluster.

    Construct it with a system, :meth:`listen`, then give it addresses to dial. It tells the system itself when a
    node is lost, because the end of a session is the end of what was asked over it.
    """

    def __init__(
        self,
        system: ActorSystem,
        *,
        key: bytes = b"",
        limits: Limits | None = None,
        advertise: str | None = None,
        medium: Medium | None = None,
    ) -> None:
        """``key`` is the cluster's secret; ``advertise`` is the address to tell others, if not the one listened on.

        ``medium`` is what it dials and listens with: WebSockets without encryption, if it is not said.

        Raises:
            ConfigError: the node's name is none that peers would take.
        """
        if not re.search(NODE_NAME, system.node):
            raise ConfigError(
                f'a node is named by 1 to 63 letters, digits, ".", "_" or "-", not {system.node!r}', param="node.name"
            )
        self.address = advertise or ""
        """``host:port`` that peers are told; empty until the node listens."""
        self._system = system
        self._key = key
        self._limits = limits or Limits()
        self._advertise = advertise
        self._medium = medium or WebSockets(self._limits)
        self._instance = secrets.token_bytes(8)
        self._listener: Listener | None = None
        self._links: dict[str, Link] = {}
        self._half_open: dict[bytes, _HalfOpen] = {}
        self._dialling: dict[str, Dialling] = {}
        self._known_at: dict[str, bytes] = {}
        """Address that was dialled to the instance of the node that answered there."""
        self._strangers: Counter[str] = Counter()
        """Host to its connections that have not passed the handshake."""
        self._told: dict[tuple[str, str], float] = {}
        self._on_up: list[Callable[[PeerInfo], None]] = []
        self._on_down: list[Callable[[str, str], None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False
        system.join(self)

    # -- life -------------------------------------------------------------------------------------------------------

    def subscribe(self, on_up: Callable[[PeerInfo], None], on_down: Callable[[str, str], None]) -> None:
        """Be called with each new peer, and with the name of each lost one and the reason."""
        self._on_up.append(on_up)
        self._on_down.append(on_down)

    async def listen(self, host: str, port: int) -> str:
        """Accept connections; port 0 takes a free one. Return the address that peers are told.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._listener = await self._medium.listen(host, port, self._accept, self._admit)
        bound = self._listener.port
        self.address = self._advertise or format_address(host, bound)
        logger.info("node {} listens for peers on {}", self._system.node, format_address(host, bound))
        return self.address

    async def close(self, grace: float = 1.0) -> None:
        """Stop dialling and accepting, let the links write what is queued for ``grace`` seconds, and close them."""
        self._closing = True
        await asyncio.gather(*(dialling.stop() for dialling in self._dialling.values()))
        self._dialling.clear()
        links = list(self._links.values())
        if links:
            flushing = [asyncio.ensure_future(link.flush()) for link in links]
            _, late = await asyncio.wait(flushing, timeout=grace)
            for task in late:
                task.cancel()
        for link in links:
            link.close("this node shuts down", GOING_AWAY)
        await asyncio.gather(*(link.wait_closed() for link in links), *self._background)
        if self._listener is not None:
            await self._listener.close()

    # -- peers ------------------------------------------------------------------------------------------------------

    def dial(self, addresses: frozenset[str]) -> None:
        """Dial these addresses, and none but these, until each has a link; links that are there stay."""
        if self._closing:
            return
        for address in sorted(self._dialling.keys() - addresses):
            self._known_at.pop(address, None)
            self._spawn(self._dialling.pop(address).stop())
        for address in sorted(addresses - self._dialling.keys()):
            self._dialling[address] = Dialling(address, self._limits, self._open, self._link_at)

    def dials(self) -> tuple[DialStatus, ...]:
        """What came of dialling each address."""
        return tuple(dialling.status for dialling in self._dialling.values())

    def peers(self) -> tuple[PeerInfo, ...]:
        """Whom there is a link to."""
        return tuple(link.peer for link in self._links.values())

    def peer(self, node: str) -> PeerInfo | None:
        """Who is at the other end of the link to this node, if there is one."""
        link = self._links.get(node)
        return link.peer if link else None

    def last_received(self, node: str) -> float | None:
        """When the last frame came from a node, on the event loop's clock; None if there is no link."""
        link = self._links.get(node)
        return link.last_received if link else None

    def traffic(self, node: str) -> dict[Lane, LaneTraffic]:
        """What the link to a node has carried and holds; empty if there is none."""
        link = self._links.get(node)
        return {lane: link.traffic(lane) for lane in Lane} if link else {}

    def disconnect(self, node: str, reason: str) -> None:
        """End the session with a node; it may be dialled again."""
        link = self._links.get(node)
        if link is not None:
            link.close(reason)

    def send(self, node: str, signal: Signal, lane: Lane) -> None:
        """Queue a signal; see :class:`runtime.actors.Transport`.

        Raises:
            PeerUnreachable: there is no link to that node.
            MailboxFull: the link's queue is full.
            TooLarge: the message is larger than the lane carries.
        """
        link = self._links.get(node)
        if link is None:
            raise PeerUnreachable(f"there is no link to node {node}")
        link.send(signal, lane)

    async def room(self, node: str, lane: Lane) -> None:
        """Wait until the queue of a link has room again, or the link is gone; see :class:`runtime.actors.Transport`."""
        link = self._links.get(node)
        if link is not None:
            await link.room(lane)

    # -- sessions that this node dials ------------------------------------------------------------------------------

    async def _open(self, address: str) -> Link:
        """Dial an address and make a link, or fail in any of the ways a network can."""
        host, port = parse_address(address)
        session = secrets.token_bytes(16)
        connections: list[Connection] = []
        try:
            async with asyncio.timeout(self._limits.handshake):
                connections.append(control := await self._medium.dial(host, port))
                identity = await introduce(control, self._identity(), self._key, Lane.CONTROL, session)
                peer = _peer_info(identity, host)
                self._check(peer)
                self._known_at[address] = peer.instance
                connections.append(bulk := await self._medium.dial(host, port))
                await introduce(bulk, self._identity(), self._key, Lane.BULK, session, expected=identity)
                if not self._decides(peer):
                    await await_ready(control)
                return self._establish(peer, control, bulk)
        except BaseException as error:
            if isinstance(error, Refused) and error.reason is Refusal.DUPLICATE and error.peer is not None:
                self._known_at[address] = error.peer.instance
            for connection in connections:
                self._spawn(connection.close())
            raise

    # -- sessions that others dial ----------------------------------------------------------------------------------

    def _admit(self, host: str) -> bool:
        return not self._closing and self._strangers[host] < self._limits.unauthenticated_per_host

    async def _accept(self, connection: Connection) -> None:
        """Serve an accepted connection from its opening to its end."""
        host = connection.host
        if await self._greet(connection, host):
            await connection.wait_closed()
        else:
            await connection.close()

    async def _greet(self, connection: Connection, host: str) -> bool:
        """Let a connection in, or say why not; return whether it is in."""
        self._strangers[host] += 1
        try:
            async with asyncio.timeout(self._limits.handshake):
                acceptor = await authenticate(connection, self._identity(), self._key)
                if acceptor.lane is Lane.CONTROL:
                    await self._welcome_control(connection, acceptor, _peer_info(acceptor.peer, host))
                else:
                    await self._welcome_bulk(connection, acceptor)
        except Refused as refusal:
            # A duplicate or a self-connection is nobody's mistake; the rest is for the operator.
            quiet = refusal.reason in (Refusal.DUPLICATE, Refusal.SELF)
            self._tell_once(host, refusal.message, "DEBUG" if quiet else "WARNING")
        except TimeoutError:
            self._tell_once(host, f"it did not finish the handshake in {self._limits.handshake:g} s", "WARNING")
        except ProtocolError as fault:
            self._tell_once(host, f"it broke the protocol: {fault}", "WARNING")
        except ConnectionError:
            self._tell_once(host, "it hung up during the handshake", "DEBUG")
        else:
            return True
        finally:
            self._strangers[host] -= 1
            if not self._strangers[host]:
                del self._strangers[host]
        return False

    async def _welcome_control(self, connection: Connection, acceptor: Acceptor, peer: PeerInfo) -> None:
        """Take the first connection of a session, wait for the second, and make the link."""
        try:
            if acceptor.session in self._half_open:
                raise ProtocolError("a session is opened twice")
            self._check(peer)
        except Refused as refusal:
            await connection.send(acceptor.verdict(refusal.reason))
            raise
        half = self._half_open[acceptor.session] = _HalfOpen(peer)
        try:
            await connection.send(acceptor.verdict())
            bulk = await half.join(connection)
            if not self._decides(peer):
                await await_ready(connection)
            self._establish(peer, connection, bulk)
        except BaseException:
            if half.bulk.done():
                self._spawn(half.bulk.result().close())
            raise
        finally:
            half.bulk.cancel()
            del self._half_open[acceptor.session]

    async def _welcome_bulk(self, connection: Connection, acceptor: Acceptor) -> None:
        """Take the second connection of a session, and hand it to the first."""
        half = self._half_open.get(acceptor.session)
        if half is None or half.peer.instance != acceptor.peer.instance or half.bulk.done():
            raise ProtocolError("a bulk connection belongs to no session that is being opened")
        await connection.send(acceptor.verdict())
        if half.bulk.done():
            raise ConnectionAbortedError("the session was given up")
        half.bulk.set_result(connection)

    # -- the decision -----------------------------------------------------------------------------------------------

    def _decides(self, peer: PeerInfo) -> bool:
        """Whether it is this node that decides which session of the two is used."""
        return self._system.node < peer.node

    def _check(self, peer: PeerInfo) -> None:
        """See whether a session with this peer would be used, as things stand; part with an earlier life of it.

        Raises:
            Refused: it would not.
        """
        if peer.instance == self._instance:
            raise Refused(Refusal.SELF, "this address is the node's own")
        if peer.node == self._system.node:
            raise Refused(Refusal.NAME, name_text(peer.node))
        link = self._links.get(peer.node)
        if link is None:
            if len(self._links) >= self._limits.peers:
                raise Refused(
                    Refusal.FULL, f"node {peer.node} is one more than the {self._limits.peers} peers a node takes"
                )
        elif link.peer.instance == peer.instance:
            if self._decides(peer):
                raise Refused(Refusal.DUPLICATE, f"node {peer.node} is linked already")
        elif link.peer.address and link.peer.address == peer.address and peer.boot > link.peer.boot:
            # Nobody else can listen where the old life listened: it is dead, and its link does not know yet.
            link.close("the node was restarted")
        else:
            raise Refused(Refusal.NAME, name_text(peer.node))

    def _establish(self, peer: PeerInfo, control: Connection, bulk: Connection) -> Link:
        """Put a session to use, without a pause in which anything could change."""
        if self._closing:
            raise ConnectionAbortedError("this node is shutting down")
        self._check(peer)
        old = self._links.get(peer.node)
        if old is not None:
            # The peer decides, and it has no link to us any more.
            old.close("the peer opened a new session")
        link = Link(peer, control, bulk, self._limits, self._deliver, self._ended)
        self._links[peer.node] = link
        link.start(READY if self._decides(peer) else None)
        logger.info("node {} is linked ({})", peer.node, peer.address or "it does not listen")
        for on_up in self._on_up:
            on_up(peer)
        return link

    def _ended(self, link: Link, reason: str) -> None:
        """A link is over; called by it, once."""
        del self._links[link.peer.node]
        self._spawn(link.wait_closed())
        logger.info("the link to node {} is gone: {}", link.peer.node, reason)
        self._system.node_lost(link.peer.node)
        for on_down in self._on_down:
            on_down(link.peer.node, reason)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _deliver(self, link: Link, signal: Signal, consumed: Callable[[], None] | None) -> None:
        """Hand a signal to the system, once its addressing is found to be the peer's to use."""
        kind = type(signal)
        if kind in _ADDRESSED:
            target: ActorRef = signal.target  # type: ignore[union-attr]  # these kinds have one
            expected = link.peer.node if kind is Gone else self._system.node
            if target.node != expected:
                raise ProtocolError(f"a {kind.__name__} for {target} came, and only {expected} may stand there")
        self._system.deliver(link.peer.node, signal, consumed)

    def _identity(self) -> Identity:
        return Identity(self._system.node, self._system.boot, self._instance, self.address)

    def _link_at(self, address: str) -> Link | None:
        known = self._known_at.get(address)
        for link in self._links.values():
            if link.peer.instance == known or link.peer.address == address:
                return link
        return None

    def _tell_once(self, host: str, reason: str, level: str) -> None:
        """Log a refused connection, but not the same one over and over."""
        now = self._system.now()
        self._told = {told: when for told, when in self._told.items() if now - when < QUIET}
        if (host, reason) not in self._told:
            self._told[host, reason] = now
            logger.log(level, "a connection from {} is refused: {}", host, reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _peer_info(identity: Identity, observed: str) -> PeerInfo:
    return PeerInfo(identity.node, identity.boot, identity.instance, reachable_address(identity.address, observed))
