"""A session: one generation in the hands of one driver, on the node that took the request.

It submits the record of the generation (:mod:`runtime.inference.transcript`), adds to it what the driver sends, and
tells the driver when nobody listens any more. When the driver or a node that it needs is lost the session ends, and the
engine starts the next one over the same record. Whatever the lost driver still sends is for a session that is gone.
"""

from __future__ import annotations

import asyncio

import msgspec

from runtime.actors import Actor, Down, Message
from runtime.errors import (
    ActorStopped,
    AskTimeout,
    MailboxFull,
    NodeUnhealthy,
    Overloaded,
    RuntimeFault,
    WireError,
    fault_named,
)
from runtime.inference.protocol import Cancel, Ready, SequenceFailed, Submitted, Token
from runtime.inference.transcript import Transcript
from runtime.spi import Delta, Finished

SUBMIT_SECONDS = 30.0

LOSSES = (ActorStopped, AskTimeout, MailboxFull, NodeUnhealthy, WireError)
"""Faults that say something of the cluster and nothing of the generation, which may go on elsewhere."""


class Lost(msgspec.Struct, frozen=True):
    """The driver does not go on with the generation; another one can."""

    fault: RuntimeFault


Outcome = Delta | Finished | RuntimeFault | Lost
"""What the reader of a session hears; all but a :class:`~runtime.spi.Delta` are the end."""


class Session(Actor):
    """Has one driver work on a generation, and puts what happens into ``outbox``.

    The outbox has no bound of its own: the context bounds how much one generation can put into it. Whatever becomes
    of the session, the last thing in it is an end.
    """

    capacity = 8192

    def __init__(self, ready: Ready, transcript: Transcript, outbox: asyncio.Queue[Outcome]) -> None:
        self._driver = ready.driver
        self._model_context = ready.context
        self._transcript = transcript
        self._outbox = outbox
        self._sequence: int | None = None
        self._ended = False

    async def started(self) -> None:
        """Submit the request to the driver."""
        self.context.monitor(self._driver)
        submission = self._transcript.submission(self.context.self_ref, self._model_context, self.context.now())
        try:
            submitted: Submitted = await self.context.ask(self._driver, submission, SUBMIT_SECONDS)
        except RuntimeFault as fault:
            self._fail(fault)
        else:
            self._sequence = submitted.sequence

    async def receive(self, message: Message) -> Message | None:
        """Take the next token, or the end."""
        if self._ended:
            return None
        match message:
            case Token():
                self._on_token(message)
            case SequenceFailed(code, text):
                self._fail(fault_named(code)(text))
            case Down(_, reason):
                what = "was lost" if reason == "noconnection" else "ended"
                self._fail(ActorStopped(f"the driver of {self._transcript.request.model} {what}"))
        return None

    async def stopped(self) -> None:
        """Tell the driver to stop, if it is still generating for this session, and the reader that this is the end."""
        if not self._ended:
            self._cancel()
            self._end(ActorStopped("the generation was stopped by the node; send the request again"))

    def _on_token(self, token: Token) -> None:
        try:
            said = self._transcript.take(token, self.context.now())
        except RuntimeFault as fault:
            self._cancel()
            self._fail(fault)
            return
        for delta in said.deltas:
            self._outbox.put_nowait(delta)
        end = said.finished or said.fault
        if end is None:
            return
        if token.reason is None:
            # The driver knows nothing of stop texts; it generates until it is told.
            self._cancel()
        self._end(end)

    def _cancel(self) -> None:
        if self._sequence is None:
            return
        try:
            self.context.tell(self._driver, Cancel(self._sequence))
        except RuntimeFault:
            return  # the driver is gone, and the generation with it

    def _fail(self, fault: RuntimeFault) -> None:
        # Whoever is new may be sent away by a full queue, and not one who is half served.
        lost = isinstance(fault, LOSSES) or (self._transcript.tokens and isinstance(fault, Overloaded))
        self._end(Lost(fault) if lost else fault)

    def _end(self, outcome: Outcome) -> None:
        self._ended = True
        self._outbox.put_nowait(outcome)
        self.context.stop_self()
