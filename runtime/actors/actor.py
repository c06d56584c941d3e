"""What the author of an actor writes, and what an actor may do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.actors.mailbox import DEFAULT_CAPACITY, Overflow
from runtime.actors.message import Message, Request
from runtime.actors.ref import ActorRef
from runtime.actors.restart import Restart, Supervision

if TYPE_CHECKING:
    from runtime.actors.cell import Cell
    from runtime.actors.reply import ReplyTo

R = TypeVar("R", bound="Message | None")


class Actor:
    """State behind a mailbox: one message at a time, so that nothing in here needs a lock.

    Subclasses match on the message's type in :meth:`receive`. For a :class:`~runtime.actors.message.Request` the
    value returned is the reply. Raising a :class:`~runtime.errors.RuntimeFault` there is an answer too: the asker
    gets it, and the actor lives on. Any other exception is a failure, and so is a fault that nobody waits for; its
    :class:`~runtime.actors.restart.Restart` and its parent's :attr:`supervision` decide what follows.

    When an asker gives up, by its deadline or because it is cancelled, ``receive`` is cancelled in the middle of that
    request, and the actor lives on: what must not stay half done belongs in a ``finally``.
    """

    capacity: int = DEFAULT_CAPACITY
    overflow: Overflow = Overflow.REJECT
    supervision: Supervision = Supervision()
    """How this actor looks after its children."""
    context: Context
    """Set before :meth:`started` is called."""

    async def started(self) -> None:
        """Run before the first message, and again after each restart. An exception here is a failure."""

    async def receive(self, message: Message) -> Message | None:
        """Handle one message."""
        raise NotImplementedError

    async def stopped(self) -> None:
        """Run after the last message of a life, also before a restart, and even if :meth:`started` failed.

        The children and tasks have ended by then, and none can be started. An exception here is a failure.
        """


class Context:
    """What an actor may do: its own address, its messages to others, its children and its tasks."""

    __slots__ = ("_cell", "_system")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._system = cell.system

    @property
    def self_ref(self) -> ActorRef:
        """The actor's own address."""
        return self._cell.ref

    @property
    def node(self) -> str:
        """The name of this node."""
        return self._system.node

    def now(self) -> float:
        """The event loop's clock, in seconds."""
        return self._system.now()

    def tell(self, target: ActorRef, message: Message) -> None:
        """Queue a message for an actor; return once it is admitted locally, which is all that is promised.

        Raises:
            ActorStopped: a local target does not exist any more.
            MailboxFull: the target's mailbox, or the link to its node, takes no more.
            PeerUnreachable: there is no link to the target's node.
        """
        self._system.tell(target, message)

    async def send(self, target: ActorRef, message: Message) -> None:
        """Like :meth:`tell`, but wait for room: in the mailbox of a local actor whose policy is to block, or in the
        queue of the link to the target's node, which empties as that node takes in what was sent before.

        Raises:
            ActorStopped: there is no such actor here, or it stopped while this waited.
            MailboxFull: the mailbox of a local actor is full and refuses.
            PeerUnreachable: there is no link to the target's node, or it was lost while this waited.
        """
        await self._system.send(target, message)

    async def ask(self, target: ActorRef, request: Request[R], timeout: float) -> R:
        """Send a request and wait for its reply, at most ``timeout`` seconds.

        If the time is up or the caller is cancelled, so is the handling of the request, wherever the callee is.

        Raises:
            AskTimeout: no reply came in time. What the callee did until then is not undone.
            AskCycle: the callee waits, through others, for this actor.
            RuntimeFault: whatever the callee answered with, or why it could not be reached.
        """
        return await self._system.ask(target, request, timeout)

    def reply_later(self) -> ReplyTo:
        """Take over the answering of the request in hand; what ``receive`` returns is then not the reply.

        A reply that is still owed when this life of the actor ends is answered with ``ActorStopped``.

        Raises:
            Misuse: no request is in hand (the message was told), or its reply is taken already.
        """
        return self._cell.take_reply()

    def monitor(self, target: ActorRef) -> None:
        """Receive one :class:`~runtime.actors.message.Down` when the target is gone, at once if it is already.

        Asking again for what is being monitored changes nothing. Monitors survive a restart of the actor.
        """
        self._system.monitor(self._cell.ref, target)

    def demonitor(self, target: ActorRef) -> None:
        """Take a monitor back; a ``Down`` already in the mailbox still arrives."""
        self._system.demonitor(self._cell.ref, target)

    def spawn(self, factory: Callable[[], Actor], name: str, restart: Restart = Restart.PERMANENT) -> ActorRef:
        """Start a child: it stops when this life of the actor ends, also before a restart.

        What ``factory`` raises now is raised here, and no child is started; on a restart it counts as a failure.

        Raises:
            ActorError: the actor has a child of this name.
            ActorStopped: the actor is in :meth:`Actor.stopped` or over, or the node is shutting down.
        """
        return self._system.spawn(factory, name, restart=restart, parent=self._cell)

    def stop(self, target: ActorRef) -> None:
        """Ask a local actor to stop after the message it is handling. It is not restarted, whatever its ``Restart``."""
        self._system.stop(target)

    def stop_self(self) -> None:
        """Stop after the message in hand. A permanent actor is restarted, as after a failure; the others are done."""
        self._cell.stop_self()

    def start_task(self, work: Coroutine[Any, Any, None], name: str, reply: ReplyTo | None = None) -> None:
        """Run something beside the mailbox. It ends with the actor's life, and its failure is the actor's failure.

        The failure is seen between two messages: ``receive`` is not interrupted. With the ``reply`` that the task
        works for, it is cancelled when the asker gives up, and what it asks counts as asked for the asker.

        Raises:
            ActorStopped: the actor is in :meth:`Actor.stopped` or over.
        """
        self._cell.start_task(work, name, reply)
