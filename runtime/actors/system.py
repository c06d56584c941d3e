"""All the actors of one node, and how messages find them here and elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from loguru import logger

from runtime.actors.actor import Actor
from runtime.actors.asks import Asks
from runtime.actors.cell import Cell
from runtime.actors.dead_letters import DeadLetters
from runtime.actors.items import Delivered, Item
from runtime.actors.message import Message, Request
from runtime.actors.monitors import Monitors
from runtime.actors.outside import Outside
from runtime.actors.ref import CURRENT, ActorRef
from runtime.actors.reply import OPEN, ReplyTo
from runtime.actors.restart import Restart, Supervision
from runtime.actors.signal import Answer, Ask, Cancel, Failure, Gone, Signal, Tell, Transport, Unwatch, Watch
from runtime.actors.supervisor import Supervisor
from runtime.errors import ActorError, ActorStopped, MailboxFull, PeerUnreachable, RuntimeFault, fault_named

R = TypeVar("R", bound="Message | None")

CANCEL_ROUNDS = 5
CANCEL_WAIT = 1.0
"""How often, and how many seconds apart, a shutdown cancels actors that hold on in spite of it."""


class ActorInfo(msgspec.Struct, frozen=True):
    """A living actor, as an operator sees it."""

    path: str
    parent: str | None
    """Path of the actor that started it; None at the top."""
    mailbox: int
    """Messages that wait."""
    handled: int
    restarts: int
    last_error: str | None
    age: float
    """Seconds since its spawn."""


class ActorSystem:
    """The actors of one node.

    Make it inside a running event loop, and :meth:`shut_down` at the end.

    Args:
        node: the name of the node.
        escalation: called when the top-level actors fail more often than ``supervision`` grants; the node is then not
            worth keeping.
        supervision: how the top-level actors are looked after.
        boot: milliseconds since the epoch at the start of the node; the high part of every incarnation, so that the
            lives of a node differ.
        jitter: varies the pauses before restarts.
    """

    def __init__(
        self,
        node: str,
        escalation: Callable[[Exception], None] | None = None,
        *,
        supervision: Supervision | None = None,
        boot: int | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self.node = node
        self.boot = time.time_ns() // 1_000_000 if boot is None else boot
        self.loop = asyncio.get_running_loop()
        self.jitter = jitter or random.Random()  # noqa: S311 - no secret
        self.dead_letters = DeadLetters(self.loop.time)
        self._escalation = escalation
        self._cells: dict[str, Cell] = {}
        self._spawned = itertools.count(1)
        self._root = Supervisor(supervision or Supervision(), self._escalated, self.jitter)
        self._outside = Outside()
        # Not from 1: an answer to a node's former life must not pass for one to this life.
        self._asks = Asks(node, (self.boot << 20) + 1, self.loop, self.dead_letters, self._outside)
        self._monitors = Monitors(node, self._outside)
        self._draining = False

    def now(self) -> float:
        """The event loop's clock, in seconds."""
        return self.loop.time()

    @property
    def is_draining(self) -> bool:
        """Whether it shuts down, and admits nothing new."""
        return self._draining

    def join(self, transport: Transport) -> None:
        """Reach other nodes through this transport."""
        self._outside.transport = transport

    def actors(self) -> list[ActorInfo]:
        """List the living actors, each followed by its children."""
        found: list[ActorInfo] = []
        now = self.now()

        def visit(supervisor: Supervisor) -> None:
            for path, cell in supervisor.children.items():
                parent = None if cell.parent is None else cell.parent.ref.path
                found.append(
                    ActorInfo(
                        path,
                        parent,
                        len(cell.mailbox),
                        cell.handled,
                        cell.restarts,
                        cell.last_error,
                        now - cell.since,
                    )
                )
                if cell.own is not None:
                    visit(cell.own)

        visit(self._root)
        return found

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
        supervisor = self._root if parent is None else parent.supervise()
        self._cells[path] = supervisor.children[path] = Cell(self, ref, factory, restart, parent, supervisor)
        return ref

    def stop(self, ref: ActorRef) -> None:
        """Ask a local actor to stop for good; stopping one that is gone is not an error."""
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
        self._root.begin_stop(drain=True)
        ending = self.loop.create_task(self._root.stop_children(drain=True), name=f"shutdown of {self.node}")
        await asyncio.wait([ending], timeout=grace)
        for _ in range(CANCEL_ROUNDS):
            if ending.done():
                break
            remaining = list(self._cells.values())
            logger.warning("{} actors have not stopped in time and are cancelled", len(remaining))
            for cell in reversed(remaining):
                cell.kill()
            await asyncio.wait([ending], timeout=CANCEL_WAIT)
        if not ending.done():
            logger.error("these actors ignore that they are cancelled: {}", ", ".join(map(str, self._cells)))
            ending.cancel()
        self._asks.fail_all(lambda ask: ActorStopped(f"node {self.node} shut down while {ask.target} was asked"))
        self._asks.deadlines.close()

    def ended(self, cell: Cell, reason: str) -> None:
        """Take note of the end of an actor; called by its cell, once."""
        if self._cells.get(cell.ref.path) is cell:
            del self._cells[cell.ref.path]
        self._monitors.ended(cell, reason)

    def _escalated(self, failure: Exception) -> None:
        """The top-level actors cannot be kept alive."""
        if self._draining:
            return
        if self._escalation is None:
            logger.critical("{}", failure)
        else:
            self._escalation(failure)

    # -- messages ---------------------------------------------------------------------------------------------------

    def tell(self, target: ActorRef, message: Message) -> None:
        """Queue a message; see :meth:`runtime.actors.actor.Context.tell`."""
        if target.node != self.node:
            self._outside.send(target.node, Tell(target, message), message.lane)
            return
        cell = self._cells.get(target.path)
        if cell is None or cell.stopping or (target.incarnation != cell.incarnation and target.incarnation != CURRENT):
            raise self._nobody(target)
        try:
            dropped = cell.mailbox.put(message)
        except MailboxFull as full:
            raise self._full(target, message, full) from None
        if dropped is not None:
            self._dropped(target, dropped)

    async def send(self, target: ActorRef, message: Message) -> None:
        """Queue a message, waiting for room; see :meth:`runtime.actors.actor.Context.send`."""
        if target.node != self.node:
            await self._outside.send_patiently(target.node, Tell(target, message), message.lane)
            return
        cell = self._admitting(target)
        try:
            dropped = await cell.mailbox.send(message)
        except MailboxFull as full:
            raise self._full(target, message, full) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ActorStopped(f"{target} stopped while {type(message).__name__} waited for room") from None
        if dropped is not None:
            self._dropped(target, dropped)

    async def ask(self, target: ActorRef, request: Request[R], timeout: float) -> R:
        """Send a request and wait; see :meth:`runtime.actors.actor.Context.ask`."""
        asks = self._asks
        ask = asks.begin(target, request, timeout)
        try:
            if target.node == self.node:
                # The same as _admit_ask, in fewer steps.
                cell = self._cells.get(target.path)
                if cell is None or cell.stopping or target.incarnation not in (CURRENT, cell.incarnation):
                    raise self._nobody(target)
                if ask.chain:
                    asks.check_cycle(cell, ask.chain)
                ask.callee = cell
                dropped = cell.mailbox.put(ask, True)
                if dropped is not None:
                    self._dropped(target, dropped)
            else:
                self._outside.send(
                    target.node, Ask(target, request, ask.id, round(timeout * 1000), ask.chain), request.lane
                )
            return await ask.future  # type: ignore[return-value]  # the callee answers with what Request[R] promises
        except MailboxFull as full:
            if ask.future.done():
                raise  # it is the callee's answer
            raise self._full(target, request, full) from None
        finally:
            del asks.pending[ask.id]
            if ask.state is OPEN:
                asks.give_up(ask)

    def monitor(self, watcher: ActorRef, target: ActorRef) -> None:
        """Send ``watcher``, a local actor, one ``Down`` when ``target`` is gone."""
        cell = self._find(watcher)
        if cell is not None:
            self._monitors.watch(cell, target, lives=self._find(target) is not None)

    def demonitor(self, watcher: ActorRef, target: ActorRef) -> None:
        """Take a monitor back."""
        cell = self._find(watcher)
        if cell is not None:
            self._monitors.unwatch(cell, target)

    # -- from other nodes -------------------------------------------------------------------------------------------

    def deliver(self, node: str, signal: Signal, consumed: Callable[[], None] | None = None) -> None:
        """Act on a signal that came from ``node``.

        ``consumed`` is called when an actor has handled the message, and is let go of when none will: it makes its
        own conclusions from that.
        """
        match signal:
            case Tell():
                message, target = signal.message, signal.target
                try:
                    self._admit_delivered(target, message if consumed is None else Delivered(message, consumed))
                except ActorError as fault:
                    self.dead_letters.record(target, message, fault.code)
            case Ask():
                reply = self._asks.take(node, signal, consumed)
                try:
                    self._admit_ask(signal.target, reply, line_up=False)
                except ActorError as fault:
                    reply.fail(fault)
            case Answer():
                self._asks.settle(signal.id, signal.value, node)
            case Failure():
                self._asks.refuse_ours(signal.id, fault_named(signal.code)(signal.text), node)
            case Cancel():
                self._asks.cancel(node, signal.id)
            case Watch():
                self._monitors.watch_for(node, signal.target, lives=self._find(signal.target) is not None)
            case Unwatch():
                self._monitors.unwatch_for(node, signal.target)
            case Gone():
                if signal.target.node == node:
                    self._monitors.announce(signal.target, signal.reason)

    def node_lost(self, node: str, reason: str = "noconnection") -> None:
        """The link to a node is gone: what was asked of it fails, what it asked is left off, its actors are down."""
        self._asks.fail_all(
            lambda ask: PeerUnreachable(f"node {node} was lost while {ask.target} was asked"), node=node
        )
        self._asks.abandon_all(node)
        self._monitors.node_lost(node, reason)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _find(self, ref: ActorRef) -> Cell | None:
        cell = self._cells.get(ref.path)
        if cell is None or ref.incarnation not in (CURRENT, cell.incarnation):
            return None
        return cell

    def _admitting(self, target: ActorRef) -> Cell:
        cell = self._cells.get(target.path)
        if cell is None or cell.stopping or (target.incarnation != cell.incarnation and target.incarnation != CURRENT):
            raise self._nobody(target)
        return cell

    def _admit_delivered(self, target: ActorRef, item: Message | Delivered) -> None:
        try:
            dropped = self._admitting(target).mailbox.put(item)
        except MailboxFull as full:
            message = item.message if isinstance(item, Delivered) else item
            raise self._full(target, message, full) from None
        if dropped is not None:
            self._dropped(target, dropped)

    def _admit_ask(self, target: ActorRef, ask: ReplyTo, *, line_up: bool) -> None:
        """Put a request into its mailbox. An asker of this node waits for room, if it must, until its deadline."""
        ask.callee = cell = self._admitting(target)
        if ask.chain:
            self._asks.check_cycle(cell, ask.chain)
        try:
            dropped = cell.mailbox.put(ask, line_up=line_up)
        except MailboxFull as full:
            raise self._full(target, ask.message, full) from None
        if dropped is not None:
            self._dropped(target, dropped)

    def _dropped(self, target: ActorRef, item: Message | Item) -> None:
        """Newer messages took the place of one."""
        if isinstance(item, ReplyTo):
            self.dead_letters.record(target, item.message, "overflow")
            item.fail(ActorStopped(f"{target} dropped the request: newer messages took its place"))
        else:
            self.dead_letters.record(target, item.message if isinstance(item, Delivered) else item, "overflow")

    def _nobody(self, target: ActorRef) -> ActorStopped:
        return ActorStopped(f"no actor lives at {target} any more")

    def _full(self, target: ActorRef, message: Message, full: MailboxFull) -> RuntimeFault:
        return MailboxFull(f"{target} does not take {type(message).__name__}: {full.message}")
