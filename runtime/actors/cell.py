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

    __slots__ = ("_answer", "_fail", "_open")

    def __init__(self, answer: Callable[[Message | None], None], fail: Callable[[RuntimeFault], None]) -> None:
        self._answer = answer
        self._fail = fail
        self._open = True

    def answer(self, value: Message | None) -> None:
        """Send the reply."""
        if self._open:
            self._open = False
            self._answer(value)

    def fail(self, fault: RuntimeFault) -> None:
        """Send a fault instead of a reply."""
        if self._open:
            self._open = False
            self._fail(fault)


class Envelope:
    """A message in a mailbox."""

    __slots__ = ("message", "reply")

    def __init__(self, message: Message, reply: ReplyTo | None) -> None:
        self.message = message
        self.reply = reply


class _Stop:
    """The item that ends a mailbox."""


class _TaskFailed(Exception):
    """A task of the actor failed; the cause is the task's exception."""


class Cell:
    """Runs one actor from its spawn to its end, through any number of restarts."""

    def __init__(
        self, system: ActorSystem, ref: ActorRef, factory: Callable[[], Actor], restart: Restart, parent: Cell | None
    ) -> None:
        self.system = system
        self.ref = ref
        self.parent = parent
        self.children: dict[str, Cell] = {}
        self.stopping = False
        self.handled = 0
        self.restarts = 0
        self.last_error: str | None = None
        self.done = asyncio.get_running_loop().create_future()
        self._factory = factory
        self._restart = restart
        self._budget = RestartBudget()
        self._actor = factory()
        self.mailbox: Mailbox[Envelope | _Stop] = Mailbox(self._actor.capacity, self._actor.overflow)
        self._tasks: set[asyncio.Task[None]] = set()
        self._current: ReplyTo | None = None
        self._task_failure: BaseException | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=str(ref))

    def stop(self) -> None:
        """Let the actor finish the message in hand, then end."""
        if not self.stopping:
            self.stopping = True
            self.mailbox.put_system(_Stop())

    def kill(self) -> None:
        """End the actor now, in the middle of a message if need be."""
        self.stopping = True
        self._task.cancel()

    def take_reply(self) -> ReplyTo:
        """Hand the answering of the request in hand to the actor."""
        if self._current is None:
            raise RuntimeError(f"{self.ref} is not handling a request, or has taken its reply already")
        reply, self._current = self._current, None
        return reply

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task that ends with this life of the actor."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.ref}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.stopping:
            self._task_failure = error
            self.mailbox.put_system(_Stop())

    async def _run(self) -> None:
        reason = "failed"
        try:
            while True:
                try:
                    await self._live()
                except Exception as error:  # noqa: BLE001 - the supervisor's whole task is to see every failure
                    if not await self._restart_after(error):
                        break
                else:
                    reason = "normal"
                    break
        except asyncio.CancelledError:
            reason = "killed"
        finally:
            self._end(reason)

    async def _live(self) -> None:
        """One life, from start to the stop item or to a failure."""
        self._task_failure = None
        self._actor.context = Context(self)
        try:
            await self._actor.started()
            await self._serve()
        finally:
            await self._wind_down()

    async def _serve(self) -> None:
        mailbox, receive = self.mailbox, self._actor.receive
        turns = 0
        while True:
            item = await mailbox.get()
            if isinstance(item, _Stop):
                if self._task_failure is not None:
                    raise _TaskFailed from self._task_failure
                return
            self.handled += 1
            self._current = item.reply
            try:
                value = await receive(item.message)
                if self._current is not None:
                    self._current.answer(value)
            except RuntimeFault as fault:
                if item.reply is None:
                    raise
                item.reply.fail(fault)
            except BaseException as error:
                if item.reply is not None:
                    item.reply.fail(RemoteFailure(f"{self.ref} failed on {type(item.message).__name__}: {error!r}"))
                raise
            finally:
                self._current = None
            turns += 1
            if turns >= TURNS_BEFORE_YIELD:
                turns = 0
                await asyncio.sleep(0)

    async def _wind_down(self) -> None:
        """Stop children and tasks, then let the actor clean up. Runs to its end even when the cell is killed."""
        for child in self.children.values():
            child.stop()
        for task in self._tasks:
            task.cancel()
        endings = [child.done for child in self.children.values()] + list(self._tasks)
        if endings:
            await asyncio.shield(asyncio.gather(*endings, return_exceptions=True))
        await self._actor.stopped()

    async def _restart_after(self, error: Exception) -> bool:
        cause = error.__cause__ if isinstance(error, _TaskFailed) and error.__cause__ is not None else error
        self.last_error = repr(cause)
        if self.stopping:
            logger.opt(exception=cause).error("{} failed while stopping", self.ref)
            return False
        delay = None if self._restart is Restart.TEMPORARY else self._budget.next_delay(self.system.now())
        if delay is None:
            logger.opt(exception=cause).error("{} failed and is not restarted", self.ref)
            return False
        logger.opt(exception=cause).error("{} failed; restarting in {:.2f} s", self.ref, delay)
        await asyncio.sleep(delay)
        if self.stopping:
            return False
        self.restarts += 1
        self._actor = self._factory()
        return True

    def _end(self, reason: str) -> None:
        self.stopping = True
        for item in self.mailbox.drain():
            if isinstance(item, Envelope):
                if item.reply is not None:
                    item.reply.fail(ActorStopped(f"{self.ref} stopped before it handled {type(item.message).__name__}"))
                else:
                    self.system.dead_letter(self.ref, item.message, "stopped")
        self.system.ended(self, reason)
        if not self.done.done():
            self.done.set_result(reason)
        if reason == "failed" and self._restart is not Restart.TEMPORARY:
            self._escalate()

    def _escalate(self) -> None:
        """A child that cannot be kept alive fails its parent; at the top, the whole system is told."""
        failure = RuntimeError(f"{self.ref} failed beyond its restart budget: {self.last_error}")
        if self.parent is None:
            self.system.escalated(failure)
        elif not self.parent.stopping:
            self.parent._task_failure = failure
            self.parent.mailbox.put_system(_Stop())
