"""The life of one actor: its mailbox, its restarts, its children and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from loguru import logger

from runtime.actors.actor import Actor, Context
from runtime.actors.mailbox import Mailbox
from runtime.actors.message import Message
from runtime.actors.ref import ActorRef
from runtime.actors.restart import Restart, RestartBudget
from runtime.errors import ActorStopped, RemoteFailure, RuntimeFault

if TYPE_CHECKING:
    from runtime.actors.system import ActorSystem

TURNS_BEFORE_YIELD = 64
"""Messages handled before the loop gets a turn, so that a busy mailbox cannot starve the node."""


class ReplyTo:
    """Where the answer to one request goes. The first answer counts."""

    __slots__ = ("_answer", "_fail", "_on_close", "_open")

    def __init__(self, answer: Callable[[Message | None], None], fail: Callable[[RuntimeFault], None]) -> None:
        self._answer = answer
        self._fail = fail
        self._open = True
        self._on_close: Callable[[ReplyTo], None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the asker still lacks an answer."""
        return self._open

    def answer(self, value: Message | None) -> None:
        """Send the reply."""
        if self._open:
            self._close()
            self._answer(value)

    def fail(self, fault: RuntimeFault) -> None:
        """Send a fault instead of a reply."""
        if self._open:
            self._close()
            self._fail(fault)

    def when_closed(self, call: Callable[[ReplyTo], None]) -> None:
        """Call this once the answer, of either kind, is sent."""
        self._on_close = call

    def _close(self) -> None:
        self._open = False
        if self._on_close is not None:
            self._on_close(self)


class Envelope:
    """A message in a mailbox."""

    __slots__ = ("consumed", "message", "reply")

    def __init__(self, message: Message, reply: ReplyTo | None, consumed: Callable[[], None] | None = None) -> None:
        """``consumed`` is called when the actor is done with the message; see :meth:`ActorSystem.deliver`."""
        self.message = message
        self.reply = reply
        self.consumed = consumed


class _Stop:
    """The item that ends a mailbox."""


class _LifeFailed:
    """The item that brings a failure from outside the messages: a task's, or a child's beyond repair.

    It names the life it is about, because the mailbox outlives a restart and the item must not end the next life.
    """

    __slots__ = ("error", "life")

    def __init__(self, life: int, error: Exception) -> None:
        self.life = life
        self.error = error


class Cell:
    """Runs one actor from its spawn to its end, through any number of restarts."""

    def __init__(
        self, system: ActorSystem, ref: ActorRef, factory: Callable[[], Actor], restart: Restart, parent: Cell | None
    ) -> None:
        self.system = system
        self.ref = ref
        self.parent = parent
        self.children: dict[str, Cell] = {}
        self.watching: set[ActorRef] = set()
        """What this actor monitors, as it named it."""
        self.stopping = False
        """Whether its stop was asked for, or it is over: no message is admitted any more."""
        self.alive = False
        """Whether a life is running that may have children and tasks: not before ``started``, not in ``stopped``."""
        self.handled = 0
        self.restarts = 0
        self.last_error: str | None = None
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._factory = factory
        self._restart = restart
        self._budget = RestartBudget()
        actor = factory()
        self.mailbox: Mailbox[Envelope | _Stop | _LifeFailed] = Mailbox(actor.capacity, actor.overflow)
        self._tasks: set[asyncio.Task[None]] = set()
        self._current: ReplyTo | None = None
        self._taken: set[ReplyTo] = set()
        self._life = 0
        self._draining = False
        self._beyond_repair = False
        self._task = asyncio.get_running_loop().create_task(self._run(actor), name=str(ref))
        # A task that is cancelled before its first step never enters its own `finally`.
        self._task.add_done_callback(lambda _: self._end("killed"))

    def stop(self) -> None:
        """Let the actor finish the message in hand, then end; what is queued behind it is not handled."""
        if not self.stopping or self._draining:
            self.stopping, self._draining = True, False
            self.mailbox.put_system(_Stop())

    def drain(self) -> None:
        """Admit nothing more, let the actor handle what is queued, then end."""
        if not self.stopping:
            self.stopping = self._draining = True
            self.mailbox.put_last(_Stop())

    def kill(self) -> None:
        """End the actor now, in the middle of a message if need be. It still winds down; killing again hurries that."""
        self.stopping = True
        self._task.cancel()

    def fail(self, error: Exception) -> None:
        """Fail the life that is running, once the message in hand is done."""
        if not self.stopping:
            self.mailbox.put_system(_LifeFailed(self._life, error))

    def take_reply(self) -> ReplyTo:
        """Hand the answering of the request in hand to the actor."""
        if self._current is None:
            raise RuntimeError(f"{self.ref} is not handling a request, or has taken its reply already")
        reply, self._current = self._current, None
        self._taken.add(reply)
        reply.when_closed(self._taken.discard)
        return reply

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task that ends with this life of the actor."""
        if not self.alive:
            work.close()
            raise ActorStopped(f"{self.ref} has stopped and cannot start the task {name}")
        task = asyncio.get_running_loop().create_task(work, name=f"{self.ref}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if not isinstance(error, Exception):
            return  # it went well; or the loop itself raises this one, such as KeyboardInterrupt
        if self.alive and not self.stopping:
            self.fail(error)
        else:
            logger.opt(exception=error).warning("task {} failed while it was stopped", task.get_name())

    async def _run(self, actor: Actor) -> None:
        reason = "killed"
        try:
            reason = await self._lives(actor)
        except asyncio.CancelledError:
            logger.debug("{} is cancelled", self.ref)
        finally:
            self._end(reason)

    async def _lives(self, first: Actor) -> str:
        """One life after the other, until there is no next one; return why."""
        actor: Actor | None = first
        while True:
            try:
                if actor is None:
                    actor = self._factory()
                await self._live(actor)
            # Seeing every failure is a supervisor's whole task. A CancelledError is one where nobody cancelled the
            # cell: the actor awaited something else that was cancelled.
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - see above
                if (reason := await self._after_failure(error)) is not None:
                    return reason
            else:
                # A kill during the winding down is not let through until that is done.
                return "killed" if self._task.cancelling() else "normal"
            actor = None
            self.restarts += 1

    async def _live(self, actor: Actor) -> None:
        """One life, from start to the stop item or to a failure."""
        self._life += 1
        self.alive = True
        actor.context = Context(self)
        failed = True
        try:
            await actor.started()
            await self._serve(actor)
            failed = False
        finally:
            await self._wind_down()
            try:
                await actor.stopped()
            except Exception as error:
                if not failed:
                    raise
                # The failure that ended the life is the one to report; this one usually follows from it.
                logger.opt(exception=error).error("{} failed once more in stopped()", self.ref)
            finally:
                for reply in list(self._taken):
                    reply.fail(ActorStopped(f"{self.ref} {'failed' if failed else 'stopped'} before it answered"))

    async def _serve(self, actor: Actor) -> None:
        mailbox, receive = self.mailbox, actor.receive
        turns = 0
        while True:
            item = await mailbox.get()
            if not isinstance(item, Envelope):
                if isinstance(item, _Stop):
                    return
                if item.life == self._life:
                    raise item.error
                continue
            self.handled += 1
            self._current = reply = item.reply
            try:
                value = await receive(item.message)
                if self._current is not None:
                    self._current.answer(value)
            except RuntimeFault as fault:
                if reply is None or not reply.is_open:
                    raise
                reply.fail(fault)
            except BaseException as error:
                if reply is not None:
                    reply.fail(self._why_unanswered(item.message, error))
                raise
            finally:
                self._current = None
                if item.consumed is not None:
                    item.consumed()
            turns += 1
            if turns >= TURNS_BEFORE_YIELD:
                turns = 0
                await asyncio.sleep(0)

    def _why_unanswered(self, message: Message, error: BaseException) -> RuntimeFault:
        if self._task.cancelling():
            return ActorStopped(f"{self.ref} was stopped while it handled {type(message).__name__}")
        return RemoteFailure(f"{self.ref} failed on {type(message).__name__}: {error!r}")

    async def _wind_down(self) -> None:
        """Stop the children and the tasks, and see them end, even when the cell is killed meanwhile."""
        self.alive = False
        for child in self.children.values():
            if self._draining:
                child.drain()
            else:
                child.stop()
        while self.children or self._tasks:
            for task in self._tasks:
                task.cancel()
            endings: list[asyncio.Future[Any]] = [child.done for child in self.children.values()]
            endings.extend(self._tasks)
            try:
                await asyncio.wait(endings)
            except asyncio.CancelledError:
                logger.debug("{} is cancelled and still waits for its children and tasks", self.ref)

    async def _after_failure(self, error: BaseException) -> str | None:
        """Wait until it is time for the next life, and return None; or return the reason why there is none."""
        if self._task.cancelling():
            if isinstance(error, Exception):
                logger.opt(exception=error).error("{} failed while it was cancelled", self.ref)
            return "killed"
        self.last_error = repr(error)
        log = logger.opt(exception=error)
        if self.stopping:
            log.error("{} failed while stopping", self.ref)
            return "failed"
        if self._restart is Restart.TEMPORARY:
            log.error("{} failed and is temporary: it is not restarted", self.ref)
            return "failed"
        delay = self._budget.next_delay(self.system.now())
        if delay is None:
            log.error("{} failed too often and is not restarted", self.ref)
            self._beyond_repair = True
            return "failed"
        log.error("{} failed; restarting in {:.2f} s", self.ref, delay)
        await asyncio.sleep(delay)
        return "normal" if self.stopping else None

    def _end(self, reason: str) -> None:
        if self.done.done():
            return
        self.stopping = True
        for item in self.mailbox.drain():
            if isinstance(item, Envelope):
                if item.reply is not None:
                    item.reply.fail(ActorStopped(f"{self.ref} stopped before it handled {type(item.message).__name__}"))
                else:
                    self.system.dead_letter(self.ref, item.message, "stopped")
        self.system.ended(self, reason)
        self.done.set_result(reason)
        if self._beyond_repair and self._restart is Restart.PERMANENT:
            self._escalate()

    def _escalate(self) -> None:
        """A permanent child that cannot be kept alive fails its parent; at the top, the whole system is told."""
        failure = RuntimeError(f"{self.ref} failed beyond its restart budget: {self.last_error}")
        if self.parent is None:
            self.system.escalated(failure)
        else:
            self.parent.fail(failure)
