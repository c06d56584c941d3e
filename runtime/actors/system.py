"""All the actors of one node, and how messages find them here and elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from loguru import logger

from runtime.actors.actor import Actor
from runtime.actors.cell import Cell, Envelope, ReplyTo
from runtime.actors.deadlines import Deadlines
from runtime.actors.message import Down, Message, Request
from runtime.actors.ref import CURRENT, ActorRef
from runtime.actors.restart import Restart
from runtime.actors.signal import (
    Answer,
    Ask,
    Failure,
    Gone,
    Signal,
    Tell,
    Transport,
    Unwatch,
    Watch,
    lane_of,
)
from runtime.errors import ActorError, ActorStopped, AskTimeout, PeerUnreachable, RuntimeFault, fault_named

R = TypeVar("R", bound="Message | None")


class _NoTransport:
    """What a system has before it is joined to others."""

    def send(self, node: str, signal: Signal, lane: object) -> None:
        del signal, lane
        raise PeerUnreachable(f"there is no link to node {node}: this node is not part of a cluster")


class ActorSystem:
    """The actors of one node.

    Make it inside a running event loop, and :meth:`shut_down` at the end. ``escalation`` is called when a permanent
    top-level actor cannot be kept alive: the node is then not worth keeping either.
    """

    def __init__(self, node: str, escalation: Callable[[Exception], None] | None = None) -> None:
        self.node = node
        self.boot = time.time_ns() // 1_000_000
        """Milliseconds since the epoch at start; the high part of every incarnation, so a node's lives differ."""
        self.dead_letters: Counter[str] = Counter()
        self._escalation = escalation
        self._transport: Transport = _NoTransport()
        self._loop = asyncio.get_running_loop()
        self._cells: dict[str, Cell] = {}
        self._spawned = itertools.count(1)
        self._asks = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[Message | None], ActorRef]] = {}
        self._deadlines = Deadlines(self._expired)
        self._watchers: dict[ActorRef, set[ActorRef]] = {}
        """Watched actor, here or elsewhere, as it was named, to the local actors that watch it."""
        self._remote_watchers: dict[ActorRef, set[str]] = {}
        """Local actor, as it was named, to the nodes that watch it."""
        self._draining = False

    def now(self) -> float:
        """The event loop's clock, in seconds."""
        return self._loop.time()

    def join(self, transport: Transport) -> None:
        """Reach other nodes through this transport."""
        self._transport = transport

    # -- life -------------------------------------------------------------------------------------------------------

    def spawn(
        self,
        factory: Callable[[], Actor],
        name: str,
        *,
        restart: Restart = Restart.PERMANENT,
        parent: Cell | None = None,
    ) -> ActorRef:
        """Start an actor at the path ``/name``, or under its parent's path.

        Raises:
            ActorError: the path is taken.
            ActorStopped: the system is shutting down.
        """
        if self._draining:
            raise ActorStopped(f"node {self.node} is shutting down and starts no more actors")
        path = f"{parent.ref.path if parent else ''}/{name}"
        if path in self._cells:
            raise ActorError(f"an actor lives at {path} on {self.node} already")
        ref = ActorRef(self.node, path, (self.boot << 20) + next(self._spawned))
        cell = Cell(self, ref, factory, restart, parent)
        self._cells[path] = cell
        if parent is not None:
            parent.children[path] = cell
        return ref

    def stop(self, ref: ActorRef) -> None:
        """Ask a local actor to stop; stopping one that is gone is not an error."""
        cell = self._find(ref)
        if cell is not None:
            cell.stop()

    async def stopped(self, ref: ActorRef) -> str:
        """Wait until a local actor has ended; return the reason."""
        cell = self._find(ref)
        return "noproc" if cell is None else await asyncio.shield(cell.done)

    async def shut_down(self, grace: float) -> None:
        """Drain: admit nothing, let the actors finish for ``grace`` seconds, then cancel what still runs."""
        self._draining = True
        roots = [cell for cell in self._cells.values() if cell.parent is None]
        for cell in roots:
            cell.stop()
        if roots:
            _, late = await asyncio.wait([cell.done for cell in roots], timeout=grace)
            if late:
                remaining = list(self._cells.values())
                logger.warning("{} actors did not stop within {} s and are cancelled", len(remaining), grace)
                for cell in reversed(remaining):
                    cell.kill()
                await asyncio.wait(late)
        for future, target in self._pending.values():
            if not future.done():
                future.set_exception(ActorStopped(f"node {self.node} shut down while {target} was asked"))
        self._deadlines.close()

    def ended(self, cell: Cell, reason: str) -> None:
        """Take note of the end of an actor; called by its cell, once."""
        if self._cells.get(cell.ref.path) is cell:
            del self._cells[cell.ref.path]
        if cell.parent is not None:
            cell.parent.children.pop(cell.ref.path, None)
        for named in (cell.ref, ActorRef(self.node, cell.ref.path)):
            self._announce(named, reason)
            for node in self._remote_watchers.pop(named, ()):
                self._send_or_log(node, Gone(named, reason))
        for watchers in self._watchers.values():
            watchers.discard(cell.ref)

    def escalated(self, failure: Exception) -> None:
        """A permanent top-level actor is lost."""
        if self._draining:
            return
        if self._escalation is None:
            logger.critical("{}", failure)
        else:
            self._escalation(failure)

    # -- messages ---------------------------------------------------------------------------------------------------

    def tell(self, target: ActorRef, message: Message) -> None:
        """Queue a message; see :meth:`runtime.actors.actor.Context.tell`."""
        if target.node == self.node:
            self._admit(target, Envelope(message, None))
        else:
            self._transport.send(target.node, Tell(target, message), message.lane)

    async def ask(self, target: ActorRef, request: Request[R], timeout: float) -> R:
        """Send a request and wait; see :meth:`runtime.actors.actor.Context.ask`."""
        ask_id = next(self._asks)
        future: asyncio.Future[Message | None] = self._loop.create_future()
        self._pending[ask_id] = (future, target)
        self._deadlines.add(ask_id, self._loop.time() + timeout)
        try:
            if target.node == self.node:
                self._admit(
                    target,
                    Envelope(
                        request,
                        ReplyTo(lambda value: self._settle(ask_id, value), lambda fault: self._fail(ask_id, fault)),
                    ),
                )
            else:
                self._transport.send(target.node, Ask(target, request, ask_id, round(timeout * 1000)), request.lane)
            return await future  # type: ignore[return-value]  # the callee answers with what Request[R] promises
        finally:
            del self._pending[ask_id]
            self._deadlines.discard(ask_id)

    def dead_letter(self, target: ActorRef, message: object, reason: str) -> None:
        """Count a message that nobody will handle."""
        self.dead_letters[reason] += 1
        logger.debug("dead letter ({}): {} for {}", reason, type(message).__name__, target)

    def monitor(self, watcher: ActorRef, target: ActorRef) -> None:
        """Send ``watcher``, a local actor, one ``Down`` when ``target`` is gone."""
        if target.node == self.node:
            if self._find(target) is None:
                self._notify(watcher, Down(target, "noproc"))
            else:
                self._watchers.setdefault(target, set()).add(watcher)
            return
        watchers = self._watchers.setdefault(target, set())
        watchers.add(watcher)
        if len(watchers) == 1:
            try:
                self._transport.send(target.node, Watch(target), lane_of(Watch(target)))
            except RuntimeFault:
                self._announce(target, "noconnection")

    def demonitor(self, watcher: ActorRef, target: ActorRef) -> None:
        """Take a monitor back."""
        watchers = self._watchers.get(target)
        if watchers is None:
            return
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[target]
            if target.node != self.node:
                self._send_or_log(target.node, Unwatch(target))

    # -- from other nodes -------------------------------------------------------------------------------------------

    def deliver(self, node: str, signal: Signal) -> None:
        """Act on a signal that came from ``node``."""
        match signal:
            case Tell(target, message):
                try:
                    self._admit(target, Envelope(message, None))
                except ActorError as fault:
                    self.dead_letter(target, message, fault.code)
            case Ask(target, message, ask_id, timeout_ms):
                self._deliver_ask(node, target, message, ask_id, timeout_ms)
            case Answer(ask_id, value):
                self._settle(ask_id, value)
            case Failure(ask_id, code, text):
                self._fail(ask_id, fault_named(code)(text))
            case Watch(target):
                if self._find(target) is None:
                    self._send_or_log(node, Gone(target, "noproc"))
                else:
                    self._remote_watchers.setdefault(target, set()).add(node)
            case Unwatch(target):
                self._remote_watchers.get(target, set()).discard(node)
            case Gone(target, reason):
                self._announce(target, reason)

    def node_lost(self, node: str, reason: str = "noconnection") -> None:
        """The link to a node is gone: what was asked of it fails, what was watched on it is down."""
        for future, target in list(self._pending.values()):
            if target.node == node and not future.done():
                future.set_exception(PeerUnreachable(f"node {node} was lost while {target} was asked"))
        for target in [target for target in self._watchers if target.node == node]:
            self._announce(target, reason)
        for watchers in self._remote_watchers.values():
            watchers.discard(node)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _find(self, ref: ActorRef) -> Cell | None:
        cell = self._cells.get(ref.path)
        if cell is None or ref.incarnation not in (CURRENT, cell.ref.incarnation):
            return None
        return cell

    def _admit(self, target: ActorRef, envelope: Envelope) -> None:
        cell = self._find(target)
        if cell is None or cell.stopping:
            raise ActorStopped(f"no actor lives at {target} any more")
        dropped = cell.mailbox.put(envelope)
        if isinstance(dropped, Envelope):
            self.dead_letter(target, dropped.message, "overflow")
            if dropped.reply is not None:
                dropped.reply.fail(ActorStopped(f"{target} dropped the request: newer messages took its place"))

    def _deliver_ask(self, node: str, target: ActorRef, message: Message, ask_id: int, timeout_ms: int) -> None:
        del timeout_ms  # the asker's own clock decides; a late answer is dropped and counted there
        reply = ReplyTo(
            lambda value: self._send_or_log(node, Answer(ask_id, value)),
            lambda fault: self._send_or_log(node, Failure(ask_id, fault.code, fault.message)),
        )
        try:
            self._admit(target, Envelope(message, reply))
        except ActorError as fault:
            reply.fail(fault)

    def _send_or_log(self, node: str, signal: Signal) -> None:
        """Send what the other side will do without, if it must: its link is down, and it knows."""
        try:
            self._transport.send(node, signal, lane_of(signal))
        except RuntimeFault as fault:
            logger.debug("{} for {} is not sent: {}", type(signal).__name__, node, fault)

    def _settle(self, ask_id: int, value: Message | None) -> None:
        entry = self._pending.get(ask_id)
        if entry is None or entry[0].done():
            self.dead_letters["late_reply"] += 1
        else:
            entry[0].set_result(value)

    def _fail(self, ask_id: int, fault: RuntimeFault) -> None:
        entry = self._pending.get(ask_id)
        if entry is None or entry[0].done():
            self.dead_letters["late_reply"] += 1
        else:
            entry[0].set_exception(fault)

    def _expired(self, ask_id: int) -> None:
        entry = self._pending.get(ask_id)
        if entry is not None and not entry[0].done():
            entry[0].set_exception(AskTimeout(f"{entry[1]} did not answer in time"))

    def _announce(self, target: ActorRef, reason: str) -> None:
        for watcher in self._watchers.pop(target, ()):
            self._notify(watcher, Down(target, reason))

    def _notify(self, watcher: ActorRef, down: Down) -> None:
        cell = self._find(watcher)
        if cell is not None and not cell.stopping:
            cell.mailbox.put_system(Envelope(down, None))
