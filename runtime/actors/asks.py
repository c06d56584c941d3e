"""Requests that are not answered yet: those of this node's actors, and those of other nodes to them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from runtime.actors.caller import CALLER
from runtime.actors.cell import Cell
from runtime.actors.dead_letters import DeadLetters
from runtime.actors.deadlines import Deadlines
from runtime.actors.message import Lane, Message
from runtime.actors.outside import Outside
from runtime.actors.ref import ActorRef
from runtime.actors.reply import ABANDONED, ANSWERED, OPEN, ReplyTo
from runtime.actors.signal import Answer, Ask, Caller, Cancel, Failure
from runtime.errors import AskCycle, AskTimeout, RuntimeFault


class PendingAsk(ReplyTo):
    """A request of ours; where it stays on this node, it is also what lies in the mailbox."""

    __slots__ = ("caller", "future", "id", "target", "timeout", "turn")

    def __init__(
        self,
        message: Message,
        chain: tuple[Caller, ...],
        ask_id: int,
        target: ActorRef,
        timeout: float,
        future: asyncio.Future[Message | None],
        caller: Cell | None,
        turn: int,
    ) -> None:
        # Set here and not by the base: this is on the way of every ask.
        self.message = message
        self.chain = chain
        self.consumed = None
        self.state = OPEN
        self.callee = None
        self.id = ask_id
        self.target = target
        self.timeout = timeout
        self.future = future
        self.caller = caller
        """The actor that handles nothing else meanwhile, if there is one."""
        self.turn = turn
        """How many messages the caller had begun to handle."""

    def answer(self, value: Message | None) -> None:
        """Send the reply."""
        # What the base does, in fewer steps.
        if self.state is OPEN:
            self.state = ANSWERED
            callee, future = self.callee, self.future
            if callee is not None and callee.taken:
                callee.taken.pop(self, None)
            if not future.done():
                future.set_result(value)
        else:
            self._close(value)

    def _fail(self, fault: RuntimeFault) -> None:
        if not self.future.done():
            self.future.set_exception(fault)


class RemoteReply(ReplyTo):
    """A request of another node."""

    __slots__ = ("_asks", "id", "node")

    def __init__(
        self,
        message: Message,
        chain: tuple[Caller, ...],
        consumed: Callable[[], None] | None,
        node: str,
        ask_id: int,
        asks: Asks,
    ) -> None:
        super().__init__(message, chain, consumed)
        self.node = node
        self.id = ask_id
        self._asks = asks

    def _answer(self, value: Message | None) -> None:
        self._asks.answer(self, value)

    def _fail(self, fault: RuntimeFault) -> None:
        self._asks.refuse(self, fault)


class Asks:
    """Keeps what is asked from here and what is asked of here.

    Args:
        node: the name of this node.
        first: the number of the first ask; those of a former life of this node are lower.
        loop: the event loop, whose clock the deadlines are on.
        dead_letters: where answers go that come too late.
        outside: the way to other nodes.
    """

    def __init__(
        self, node: str, first: int, loop: asyncio.AbstractEventLoop, dead_letters: DeadLetters, outside: Outside
    ) -> None:
        self.pending: dict[int, PendingAsk] = {}
        """What is asked from here."""
        self.serving: dict[tuple[str, int], RemoteReply] = {}
        """What is asked of here by other nodes."""
        self._node = node
        self._numbers = itertools.count(first)
        self._dead_letters = dead_letters
        self._outside = outside
        self.deadlines = Deadlines(self.pending, self._expired)
        # Bound once: these are on the way of every ask.
        self._add_deadline = self.deadlines.add
        self._create_future: Callable[[], asyncio.Future[Message | None]] = loop.create_future
        self._time = loop.time

    # -- from here --------------------------------------------------------------------------------------------------

    def begin(self, target: ActorRef, message: Message, timeout: float) -> PendingAsk:
        """Take note of a request, on behalf of whoever runs; to be taken out of ``pending`` when it is over."""
        number = next(self._numbers)
        scope = CALLER.get()
        caller: Cell | None = None
        if scope is None:
            chain: tuple[Caller, ...] = ()
        elif isinstance(scope, Cell):
            caller = scope
            chain = (*scope.chain, Caller(scope.ref, number))
        else:
            chain = scope.chain
        self.pending[number] = ask = PendingAsk(
            message,
            chain,
            number,
            target,
            timeout,
            self._create_future(),
            caller,
            0 if caller is None else caller.handled,
        )
        self._add_deadline(number, self._time() + timeout)
        return ask

    def give_up(self, ask: PendingAsk) -> None:
        """Nobody waits for the answer any more: tell the callee."""
        ask.abandon()
        if ask.target.node != self._node:
            # On the lane of the ask: what overtakes it would find nothing to cancel.
            self._outside.send_or_log(ask.target.node, Cancel(ask.id), ask.message.lane)

    def check_cycle(self, cell: Cell, chain: tuple[Caller, ...]) -> None:
        """See whether an actor of this node can come to a request of this chain.

        Raises:
            AskCycle: it waits for the answer itself.
        """
        for index, caller in enumerate(chain):
            if caller.ref != cell.ref:
                continue
            ask = self.pending.get(caller.ask)
            if ask is not None and ask.caller is cell and ask.state is OPEN and cell.is_held_up(ask.turn):
                cycle = " -> ".join(str(each.ref) for each in (*chain[index:], caller))
                raise AskCycle(
                    f"{cell.ref} waits for an answer itself and cannot give one: {cycle}; tell instead of ask, or ask "
                    "from a task"
                )

    def settle(self, number: int, value: Message | None, node: str) -> None:
        """Take the answer of another node."""
        if (ask := self._awaited(number, value, node)) is not None:
            ask.answer(value)

    def refuse_ours(self, number: int, fault: RuntimeFault, node: str) -> None:
        """Take the fault that another node answers with."""
        if (ask := self._awaited(number, fault, node)) is not None:
            ask.fail(fault)

    def fail_all(self, fault: Callable[[PendingAsk], RuntimeFault], node: str | None = None) -> None:
        """Fail what is asked of a node, or all there is."""
        for ask in self.pending.values():
            if (node is None or ask.target.node == node) and not ask.future.done():
                ask.future.set_exception(fault(ask))
                if node is not None:
                    ask.state = ABANDONED  # there is nobody to be told

    def _awaited(self, number: int, what: object, node: str) -> PendingAsk | None:
        """Return the request that ``node`` answers, or count the answer as late."""
        ask = self.pending.get(number)
        if ask is None or ask.state is not OPEN or ask.future.done() or ask.target.node != node:
            self._dead_letters.record(None if ask is None else ask.target, what, "late_reply")
            return None
        return ask

    def _expired(self, number: int) -> None:
        ask = self.pending.get(number)
        if ask is not None and not ask.future.done():
            ask.future.set_exception(
                AskTimeout(f"{ask.target} did not answer {type(ask.message).__name__} within {ask.timeout:g} s")
            )
            if ask.state is OPEN:
                self.give_up(ask)

    # -- of here ----------------------------------------------------------------------------------------------------

    def take(self, node: str, ask: Ask, consumed: Callable[[], None] | None) -> RemoteReply:
        """Take note of a request of another node."""
        reply = RemoteReply(ask.message, ask.chain, consumed, node, ask.id, self)
        self.serving[node, ask.id] = reply
        return reply

    def cancel(self, node: str, number: int) -> None:
        """Leave off a request that its asker has given up."""
        reply = self.serving.pop((node, number), None)
        if reply is not None:
            reply.abandon()

    def abandon_all(self, node: str) -> None:
        """Leave off everything that a lost node has asked."""
        for key in [key for key in self.serving if key[0] == node]:
            self.serving.pop(key).abandon()

    def answer(self, reply: RemoteReply, value: Message | None) -> None:
        """Send an answer; where it cannot travel (too large, a full queue), send why, which is small."""
        self.serving.pop((reply.node, reply.id), None)
        try:
            self._outside.send(reply.node, Answer(reply.id, value), Lane.CONTROL if value is None else value.lane)
        except RuntimeFault as fault:
            self.refuse(reply, fault)

    def refuse(self, reply: RemoteReply, fault: RuntimeFault) -> None:
        """Send a fault instead of an answer."""
        self.serving.pop((reply.node, reply.id), None)
        self._outside.send_or_log(reply.node, Failure(reply.id, fault.code, fault.message), Lane.CONTROL)
