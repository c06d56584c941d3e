"""The life of one actor: its mailbox, its restarts, its children and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from loguru import logger

from runtime.actors.actor import Actor, Context
from runtime.actors.caller import CALLER, Aside
from runtime.actors.items import Delivered, Item, LifeOver, Recall, Stop
from runtime.actors.mailbox import Mailbox
from runtime.actors.message import Message
from runtime.actors.ref import ActorRef
from runtime.actors.reply import ABANDONED, ANSWERED, OPEN, ReplyTo
from runtime.actors.restart import Restart
from runtime.actors.signal import Caller
from runtime.actors.supervisor import Supervisor
from runtime.errors import ActorStopped, Misuse, RemoteFailure, RuntimeFault

if TYPE_CHECKING:
    from runtime.actors.system import ActorSystem

TURNS_BEFORE_YIELD = 64
"""Messages handled before the loop gets a turn, so that a busy mailbox cannot starve the node."""


class Cell:
    """Runs one actor from its spawn to its end, through any number of restarts."""

    __slots__ = (
        "_alive",
        "_at_rest",
        "_current",
        "_cut_short",
        "_draining",
        "_factory",
        "_go",
        "_left_off",
        "_life",
        "_recalled",
        "_task",
        "_tasks",
        "_terms",
        "chain",
        "done",
        "handled",
        "incarnation",
        "last_error",
        "mailbox",
        "own",
        "parent",
        "ref",
        "restart",
        "restarts",
        "since",
        "stopping",
        "supervisor",
        "system",
        "taken",
        "watching",
    )

    def __init__(
        self,
        system: ActorSystem,
        ref: ActorRef,
        factory: Callable[[], Actor],
        restart: Restart,
        parent: Cell | None,
        supervisor: Supervisor,
    ) -> None:
        loop = system.loop
        self.system = system
        self.ref = ref
        self.incarnation = ref.incarnation
        self.restart = restart
        self.parent = parent
        self.supervisor = supervisor
        """Decides about this actor's lives."""
        self.own: Supervisor | None = None
        """Decides about the lives of its children, if it has had any in this life."""
        self.watching: set[ActorRef] | None = None
        """What this actor monitors, as it named it; None before the first."""
        self.stopping = False
        """Whether its stop was asked for, or it is over: no message is admitted any more."""
        self.chain: tuple[Caller, ...] = ()
        """Who waits for the answer to the request in hand."""
        self.handled = 0
        self.restarts = 0
        self.since = loop.time()
        self.last_error: str | None = None
        self.done: asyncio.Future[str] = loop.create_future()
        self._factory = factory
        actor = factory()
        self._terms = actor.supervision
        self.mailbox: Mailbox[Message | Item] = Mailbox(actor.capacity, actor.overflow)
        self._tasks: set[asyncio.Task[None]] | None = None
        self._current: ReplyTo | None = None
        """The request in hand, unless its reply was taken."""
        self.taken: dict[ReplyTo, asyncio.Task[None] | None] | None = None
        """Requests that the actor answers later, each with the task that works for it, if it has told."""
        self._life = 0
        self._alive = False
        self._draining = False
        self._left_off = False
        """Whether the task was cancelled only to leave off the request in hand."""
        self._recalled = False
        self._cut_short = False
        """Whether the task was cancelled only to end the life that is recalled."""
        self._at_rest: asyncio.Future[None] | None = None
        self._go: asyncio.Future[None] | None = None
        self._task = loop.create_task(self._run(actor), name=str(ref))
        # A task that is cancelled before its first step never enters its own `finally`.
        self._task.add_done_callback(self._task_over)

    # -- from outside -----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether a life is running that may have children and tasks: not before ``started``, not in ``stopped``."""
        return self._alive

    def stop(self) -> None:
        """Let the actor finish the message in hand, then end; what is queued behind it is not handled."""
        if not self.stopping or self._draining:
            self.stopping, self._draining = True, False
            self.mailbox.put_system(Stop())
            self._wake()

    def stop_self(self) -> None:
        """End this life after the message in hand, as the actor itself wishes; it may have a next one."""
        if self.restart is Restart.PERMANENT:
            if not self.stopping:
                self.mailbox.put_system(LifeOver(self._life, None))
        else:
            self.stop()

    def drain(self) -> None:
        """Admit nothing more, let the actor handle what is queued, then end."""
        if not self.stopping:
            self.stopping = self._draining = True
            self.mailbox.put_last(Stop())
            self._wake()

    def kill(self) -> None:
        """End the actor now, in the middle of a message if need be. It still winds down; killing again hurries that."""
        self.stopping = True
        self._task.cancel()

    def fail(self, error: Exception) -> None:
        """Fail the life that is running, once the message in hand is done."""
        if not self.stopping:
            self.mailbox.put_system(LifeOver(self._life, error))

    async def recall(self, grace: float) -> None:
        """End this life and wait until it is over; the next begins with :meth:`release`. A temporary actor ends.

        The message in hand has ``grace`` seconds to end; then it is cancelled.
        """
        if self.restart is Restart.TEMPORARY:
            self.stop()
        if self._go is not None or self.done.done():
            return
        over: asyncio.Future[None] = self.system.loop.create_future()
        self._at_rest = over
        if not self.stopping:
            self._recalled = True
            self.mailbox.put_system(Recall())
        await asyncio.wait([over], timeout=grace)
        if not over.done():
            logger.warning("{} does not come to an end and is cancelled", self.ref)
            self._cut_short = True
            self._task.cancel()
            await over

    def release(self) -> None:
        """Let the next life begin, if one is waited for."""
        self._recalled = False
        self._wake()

    def is_held_up(self, turn: int) -> bool:
        """Whether the actor is still in the turn that it was in when it had handled ``turn`` messages."""
        return self.handled == turn and not self.mailbox.is_awaited and not self.done.done()

    # -- requests ---------------------------------------------------------------------------------------------------

    def take_reply(self) -> ReplyTo:
        """Hand the answering of the request in hand to the actor."""
        if self._current is None:
            raise Misuse(f"{self.ref} is not handling a request, or has taken its reply already")
        reply, self._current = self._current, None
        if self.taken is None:
            self.taken = {}
        self.taken[reply] = None
        return reply

    def answered_late(self, what: object) -> None:
        """Take note of an answer that nobody waits for any more; called by its reply."""
        self.system.dead_letters.record(self.ref, what, "late_reply")

    def abandoned(self, reply: ReplyTo) -> None:
        """Leave off a request that nobody waits for any more; one that is queued is skipped when its turn comes."""
        if self._current is reply:
            # One that gives up on itself, by losing a node for instance, is in the middle of a step that goes on.
            if asyncio.current_task() is not self._task:
                self._left_off = True
                self._task.cancel()
        elif self.taken and reply in self.taken:
            task = self.taken.pop(reply)
            if task is not None:
                task.cancel()
        else:
            self.mailbox.withdraw(reply)

    # -- tasks ------------------------------------------------------------------------------------------------------

    def start_task(self, work: Coroutine[Any, Any, None], name: str, reply: ReplyTo | None) -> None:
        """Run a task that ends with this life of the actor, and with the interest in its reply if it has one."""
        if not self._alive:
            work.close()
            raise ActorStopped(f"{self.ref} has stopped and cannot start the task {name}")
        context = copy_context()
        context.run(CALLER.set, None if reply is None else Aside(reply.chain))
        task = self.system.loop.create_task(work, name=f"{self.ref}:{name}", context=context)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        if reply is not None:
            if self.taken and reply in self.taken:
                self.taken[reply] = task
            elif reply.state is ABANDONED:
                task.cancel()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if not isinstance(error, Exception):
            return  # it went well; or the loop itself raises this one, such as KeyboardInterrupt
        if self._alive and not self.stopping:
            self.fail(error)
        else:
            logger.opt(exception=error).warning("task {} failed while it was stopped", task.get_name())

    # -- lives ------------------------------------------------------------------------------------------------------

    def supervise(self) -> Supervisor:
        """Return what decides about the lives of the children of this life."""
        if self.own is None:
            self.own = Supervisor(self._terms, self.fail, self.system.jitter)
        return self.own

    async def _run(self, first: Actor) -> None:
        """One life after the other, until there is no next one."""
        CALLER.set(self)
        reason = "killed"
        actor: Actor | None = first
        del first  # or it would be kept as long as the cell
        try:
            while True:
                failure: BaseException | None = None
                try:
                    if actor is None:
                        actor = self._factory()
                    self._begin(actor)
                    try:
                        await actor.started()
                        await self._serve(actor.receive)
                    except BaseException:
                        await self._wind_down(actor, failed=True)
                        raise
                    await self._wind_down(actor, failed=False)
                # Seeing every failure is a supervisor's whole task. A CancelledError is one where nobody cancelled
                # the cell: the actor awaited something else that was cancelled.
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - see above
                    failure = error
                actor = None
                verdict = self._after_life(failure)
                failure = None  # it holds this frame, and the frame holds it
                if verdict is None:
                    verdict = await self._rest()
                if verdict is not None:
                    reason = verdict
                    return
                self.restarts += 1
        except asyncio.CancelledError:
            logger.debug("{} is cancelled", self.ref)
        finally:
            self._end(reason)

    def _begin(self, actor: Actor) -> None:
        self._life += 1
        self._alive = True
        self.own = None
        self._terms = actor.supervision
        actor.context = Context(self)

    async def _serve(self, receive: Callable[[Message], Coroutine[Any, Any, Message | None]]) -> None:
        """Handle messages until an item ends the life, or a failure."""
        mailbox = self.mailbox
        take = mailbox.take
        turns = TURNS_BEFORE_YIELD
        while True:
            item = take()
            if item is None:
                await mailbox.wait()
                continue
            if not isinstance(item, Item):
                self.handled += 1
                await receive(item)
            elif isinstance(item, ReplyTo):
                if item.state is not OPEN:
                    self.system.dead_letters.record(self.ref, item.message, "cancelled")
                    continue
                self.handled += 1
                self._current = item
                self.chain = item.chain
                try:
                    value = await receive(item.message)
                    if self._current is not None:
                        item.answer(value)
                except BaseException as error:
                    if not self._is_answer(item, error):
                        raise
                finally:
                    self._current = None
                    self.chain = ()
                    if self._left_off:
                        self._left_off = False
                        self._task.uncancel()
                    if item.consumed is not None:
                        item.consumed()
            elif isinstance(item, Delivered):
                self.handled += 1
                try:
                    await receive(item.message)
                finally:
                    if item.consumed is not None:
                        item.consumed()
            elif isinstance(item, LifeOver):
                if item.life != self._life:
                    continue
                if item.error is not None:
                    raise item.error
                return
            elif isinstance(item, Stop) or self._recalled:
                return
            turns -= 1
            if not turns:
                turns = TURNS_BEFORE_YIELD
                await asyncio.sleep(0)

    def _is_answer(self, reply: ReplyTo, error: BaseException) -> bool:
        """See that a request that ended in an exception is answered; return False if it is a failure besides."""
        if isinstance(error, RuntimeFault) and not isinstance(error, Misuse) and reply.state is not ANSWERED:
            reply.fail(error)  # where the asker has given up, it is an answer that comes late
            return True
        if self._left_off and isinstance(error, asyncio.CancelledError) and self._task.cancelling() == 1:
            return True  # it was left off
        reply.fail(self._why_unanswered(reply.message, error))
        return False

    def _why_unanswered(self, message: Message, error: BaseException) -> RuntimeFault:
        if self._task.cancelling() > self._left_off:
            return ActorStopped(f"{self.ref} was stopped while it handled {type(message).__name__}")
        return RemoteFailure(f"{self.ref} failed on {type(message).__name__}: {error!r}")

    async def _wind_down(self, actor: Actor, *, failed: bool) -> None:
        """See the children and the tasks end, even when the cell is killed meanwhile; then let the actor clean up."""
        self._alive = False
        while (self.own is not None and self.own.children) or self._tasks:
            try:
                await self._stop_dependants()
            except asyncio.CancelledError:
                logger.debug("{} is cancelled and still waits for its children and tasks", self.ref)
        try:
            await actor.stopped()
        except Exception as error:
            if not failed:
                raise
            # The failure that ended the life is the one to report; this one usually follows from it.
            logger.opt(exception=error).error("{} failed once more in stopped()", self.ref)
        finally:
            for reply in list(self.taken or ()):
                reply.fail(ActorStopped(f"{self.ref} {'failed' if failed else 'stopped'} before it answered"))

    async def _stop_dependants(self) -> None:
        for task in self._tasks or ():
            task.cancel()
        if self.own is not None:
            await self.own.stop_children(drain=self._draining)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _after_life(self, failure: BaseException | None) -> str | None:
        """Return why there is no next life; or None if there is one when it is released."""
        if self._cut_short:
            self._cut_short = False
            self._task.uncancel()
        if self._task.cancelling():
            # A kill during the winding down is not let through until that is done.
            if isinstance(failure, Exception):
                logger.opt(exception=failure).error("{} failed while it was cancelled", self.ref)
            return "killed"
        if failure is not None and not (self._recalled and isinstance(failure, asyncio.CancelledError)):
            self.last_error = repr(failure)
            if self.stopping or self._recalled:
                logger.opt(exception=failure).error("{} failed while stopping", self.ref)
        if self.stopping:
            return "normal" if failure is None else "failed"
        if self._recalled or self.supervisor.ended(self, failure):
            return None
        return "normal" if failure is None else "failed"

    async def _rest(self) -> str | None:
        """Wait for the next life and return None, or return why there is none after all."""
        self._go = self.system.loop.create_future()
        self._note_rest()
        try:
            await self._go
        finally:
            self._go = None
        return "normal" if self.stopping else None

    def _wake(self) -> None:
        if self._go is not None and not self._go.done():
            self._go.set_result(None)

    def _note_rest(self) -> None:
        if self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)
        self._at_rest = None

    def _task_over(self, task: asyncio.Task[None]) -> None:
        del task
        self._end("killed")

    def _end(self, reason: str) -> None:
        if self.done.done():
            return
        self.stopping = True
        for item in self.mailbox.drain():
            if isinstance(item, ReplyTo) and item.is_open:
                item.fail(ActorStopped(f"{self.ref} stopped before it handled {type(item.message).__name__}"))
            elif isinstance(item, ReplyTo):
                self.system.dead_letters.record(self.ref, item.message, "cancelled")
            elif isinstance(item, Delivered):
                self.system.dead_letters.record(self.ref, item.message, "stopped")
            elif not isinstance(item, Item):
                self.system.dead_letters.record(self.ref, item, "stopped")
        self.supervisor.forget(self)
        self.system.ended(self, reason)
        self.done.set_result(reason)
        self._note_rest()
