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
    Cancel,
    Failure,
    Gone,
    Signal,
    Tell,
    Transport,
    Unwatch,
    Watch,
    lane_of,
)
from runtime.errors import (
    ActorError,
    ActorStopped,
    AskTimeout,
    MailboxFull,
    PeerUnreachable,
    RuntimeFault,
    fault_named,
)

R = TypeVar("R", bound="Message | None")

CANCEL_ROUNDS = 5
CANCEL_WAIT = 1.0
"""How often, and how many seconds apart, a shutdown cancels actors that hold on in spite of it."""


class _PendingAsk:
    """A request of ours that is not answered yet."""

    __slots__ = ("future", "request", "target", "timeout")

    def __init__(
        self, future: asyncio.Future[Message | None], target: ActorRef, request: type[Message], timeout: float
    ) -> None:
        self.future = future
        self.target = target
        self.request = request
        self.timeout = timeout


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

    def __init__(
        self, node: str, escalation: Callable[[Exception], None] | None = None, boot: int | None = None
    ) -> None:
        self.node = node
        self.boot = time.time_ns() // 1_000_000 if boot is None else boot
        """Milliseconds since the epoch at start; the high part of every incarnation, so a node's lives differ."""
        self.dead_letters: Counter[str] = Counter()
        self._escalation = escalation
        self._transport: Transport = _NoTransport()
        self._loop = asyncio.get_running_loop()
        self._cells: dict[str, Cell] = {}
        self._spawned = itertools.count(1)
        # Not from 1: an answer to a node's former life must not pass for one to this life.
        self._asks = itertools.count((self.boot << 20) + 1)
        self._pending: dict[int, _PendingAsk] = {}
        self._deadlines = Deadlines(self._expired)
        self._watchers: dict[ActorRef, set[Cell]] = {}
        """Watched actor, here or elsewhere, as it was named, to the local actors that watch it; never empty."""
        self._remote_watchers: dict[ActorRef, set[str]] = {}
        """Local actor, as it was named, to the nodes that watch it; never empty."""
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
            ActorStopped: the system is shutting down, or the parent is.
        """
        if self._draining:
            raise ActorStopped(f"node {self.node} is shutting down and starts no more actors")
        if parent is not None and not parent.alive:
            raise ActorStopped(f"{parent.ref} has stopped and cannot have the child {name}")
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
        """Drain: admit nothing, let the actors finish what is queued for ``grace`` seconds, then cancel the rest.

        What is left is answered with :class:`~runtime.errors.ActorStopped`, and so is what was asked from here.
        """
        self._draining = True
        roots = [cell for cell in self._cells.values() if cell.parent is None]
        for cell in roots:
            cell.drain()
        late = {cell.done for cell in roots}
        if late:
            _, late = await asyncio.wait(late, timeout=grace)
        for _ in range(CANCEL_ROUNDS):
            if not late:
                break
            remaining = list(self._cells.values())
            logger.warning("{} actors have not stopped in time and are cancelled", len(remaining))
            for cell in reversed(remaining):
                cell.kill()
            _, late = await asyncio.wait(late, timeout=CANCEL_WAIT)
        if late:
            logger.error("these actors ignore that they are cancelled: {}", ", ".join(map(str, self._cells)))
        for ask in self._pending.values():
            if not ask.future.done():
                ask.future.set_exception(ActorStopped(f"node {self.node} shut down while {ask.target} was asked"))
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
        for target in list(cell.watching):
            self._unwatch(cell, target)

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
        self._pending[ask_id] = _PendingAsk(future, target, type(request), timeout)
        self._deadlines.add(ask_id, self._loop.time() + timeout)
        try:
            if target.node == self.node:
                self._admit(
                    target,
                    Envelope(
                        request,
                        ReplyTo(
                            lambda value: self._settle(ask_id, value, self.node),
                            lambda fault: self._fail(ask_id, fault, self.node),
                        ),
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
        cell = self._find(watcher)
        if cell is None or target in cell.watching:
            return
        if target.node == self.node and self._find(target) is None:
            self._notify(cell, Down(target, "noproc"))
            return
        cell.watching.add(target)
        watchers = self._watchers.setdefault(target, set())
        watchers.add(cell)
        if target.node != self.node and len(watchers) == 1:
            try:
                self._transport.send(target.node, Watch(target), lane_of(Watch(target)))
            except RuntimeFault:
                self._announce(target, "noconnection")

    def demonitor(self, watcher: ActorRef, target: ActorRef) -> None:
        """Take a monitor back."""
        cell = self._find(watcher)
        if cell is not None and target in cell.watching:
            self._unwatch(cell, target)

    # -- from other nodes -------------------------------------------------------------------------------------------

    def deliver(self, node: str, signal: Signal, consumed: Callable[[], None] | None = None) -> None:
        """Act on a signal that came from ``node``.

        ``consumed`` is called when an actor has handled the message, and is let go of when none will: it makes its
        own conclusions from that.
        """
        match signal:
            case Tell(target, message):
                try:
                    self._admit(target, Envelope(message, None, consumed))
                except ActorError as fault:
                    self.dead_letter(target, message, fault.code)
            case Ask(target, message, ask_id, timeout_ms):
                self._deliver_ask(node, target, message, ask_id, timeout_ms, consumed)
            case Cancel(ask_id):
                logger.debug("node {} does not wait for its ask {} any more", node, ask_id)
            case Answer(ask_id, value):
                self._settle(ask_id, value, node)
            case Failure(ask_id, code, text):
                self._fail(ask_id, fault_named(code)(text), node)
            case Watch(target):
                if self._find(target) is None:
                    self._send_or_log(node, Gone(target, "noproc"))
                else:
                    self._remote_watchers.setdefault(target, set()).add(node)
            case Unwatch(target):
                self._forget_remote_watcher(target, node)
            case Gone(target, reason):
                if target.node == node:
                    self._announce(target, reason)

    def node_lost(self, node: str, reason: str = "noconnection") -> None:
        """The link to a node is gone: what was asked of it fails, what was watched on it is down."""
        for ask in self._pending.values():
            if ask.target.node == node and not ask.future.done():
                ask.future.set_exception(PeerUnreachable(f"node {node} was lost while {ask.target} was asked"))
        for target in [target for target in self._watchers if target.node == node]:
            self._announce(target, reason)
        for target in list(self._remote_watchers):
            self._forget_remote_watcher(target, node)

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
        try:
            dropped = cell.mailbox.put(envelope)
        except MailboxFull as full:
            raise MailboxFull(f"{target} does not take {type(envelope.message).__name__}: {full.message}") from None
        if isinstance(dropped, Envelope):
            self.dead_letter(target, dropped.message, "overflow")
            if dropped.reply is not None:
                dropped.reply.fail(ActorStopped(f"{target} dropped the request: newer messages took its place"))

    def _deliver_ask(
        self,
        node: str,
        target: ActorRef,
        message: Message,
        ask_id: int,
        timeout_ms: int,
        consumed: Callable[[], None] | None,
    ) -> None:
        del timeout_ms  # the asker's own clock decides; a late answer is dropped and counted there
        reply = ReplyTo(
            lambda value: self._send_answer(node, Answer(ask_id, value)),
            lambda fault: self._send_or_log(node, Failure(ask_id, fault.code, fault.message)),
        )
        try:
            self._admit(target, Envelope(message, reply, consumed))
        except ActorError as fault:
            reply.fail(fault)

    def _send_answer(self, node: str, answer: Answer) -> None:
        """Send an answer; where it cannot travel (too large, a full queue), send why, which is small."""
        try:
            self._transport.send(node, answer, lane_of(answer))
        except RuntimeFault as fault:
            self._send_or_log(node, Failure(answer.id, fault.code, fault.message))

    def _send_or_log(self, node: str, signal: Signal) -> None:
        """Send what the other side will do without, if it must: its link is down, and it knows."""
        try:
            self._transport.send(node, signal, lane_of(signal))
        except RuntimeFault as fault:
            logger.debug("{} for {} is not sent: {}", type(signal).__name__, node, fault)

    def _settle(self, ask_id: int, value: Message | None, node: str) -> None:
        if (ask := self._awaited(ask_id, node)) is not None:
            ask.future.set_result(value)

    def _fail(self, ask_id: int, fault: RuntimeFault, node: str) -> None:
        if (ask := self._awaited(ask_id, node)) is not None:
            ask.future.set_exception(fault)

    def _awaited(self, ask_id: int, node: str) -> _PendingAsk | None:
        """Return the request that ``node`` answers, or count the answer as late."""
        ask = self._pending.get(ask_id)
        if ask is None or ask.future.done() or ask.target.node != node:
            self.dead_letters["late_reply"] += 1
            return None
        return ask

    def _expired(self, ask_id: int) -> None:
        ask = self._pending.get(ask_id)
        if ask is not None and not ask.future.done():
            ask.future.set_exception(
                AskTimeout(f"{ask.target} did not answer {ask.request.__name__} within {ask.timeout:g} s")
            )

    def _announce(self, target: ActorRef, reason: str) -> None:
        for cell in self._watchers.pop(target, ()):
            cell.watching.discard(target)
            self._notify(cell, Down(target, reason))

    def _notify(self, cell: Cell, down: Down) -> None:
        if not cell.stopping:
            cell.mailbox.put_system(Envelope(down, None))

    def _unwatch(self, cell: Cell, target: ActorRef) -> None:
        cell.watching.discard(target)
        watchers = self._watchers[target]
        watchers.discard(cell)
        if not watchers:
            del self._watchers[target]
            if target.node != self.node:
                self._send_or_log(target.node, Unwatch(target))

    def _forget_remote_watcher(self, target: ActorRef, node: str) -> None:
        nodes = self._remote_watchers.get(target)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._remote_watchers[target]
