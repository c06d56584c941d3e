"""A session: one generation, on the node that took the request.

It holds what the text depends on: the prompt's tokens, the settings, and the tokens so far. It turns tokens into
text, ends at stop texts, and tells the driver when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from runtime.actors import Actor, ActorRef, Down, Message
from runtime.errors import ActorStopped, ProtocolError, RuntimeFault, fault_named
from runtime.inference.prompt import Tokenizer
from runtime.inference.protocol import Cancel, SequenceFailed, Submit, Submitted, Token
from runtime.inference.text import TextStream
from runtime.spi import Chat, Delta, Finished, FinishReason, GenerationRequest, ScoredToken, Timings, Usage

SUBMIT_SECONDS = 30.0


class SessionStart(msgspec.Struct, frozen=True):
    """What a session begins with."""

    request: GenerationRequest
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    driver: ActorRef
    began: float
    """When the request came, on the event loop's clock."""
    load_seconds: float


class NotTaken(msgspec.Struct, frozen=True):
    """The driver was gone before it took the request, which can go to the next one."""

    fault: ActorStopped


Outcome = Delta | Finished | RuntimeFault | NotTaken
"""What the reader of a session hears; a fault is the end, as are :class:`~runtime.spi.Finished` and `NotTaken`."""


class Session(Actor):
    """Generates for one request and puts what happens into ``outbox``.

    The outbox has no bound of its own: the context bounds how much one generation can put into it. Whatever becomes
    of the session, the last thing in it is an end. ``counted`` is told after each token how many there are: a
    generation that is cancelled or fails has no other count.
    """

    capacity = 8192

    def __init__(
        self,
        start: SessionStart,
        tokenizer: Tokenizer,
        outbox: asyncio.Queue[Outcome],
        counted: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._start = start
        self._tokenizer = tokenizer
        self._outbox = outbox
        self._counted = counted
        continues = not isinstance(start.request.prompt, Chat)
        self._text = TextStream(tokenizer.detokenizer(continues=continues), start.request.stop)
        self._eos = () if start.request.ignore_eos else tokenizer.eos_ids
        self._sequence: int | None = None
        self._tokens: list[int] = []
        self._held: list[ScoredToken] = []
        self._submitted = math.nan
        self._first: float | None = None
        self._ended = False

    async def started(self) -> None:
        """Submit the request to the driver."""
        start = self._start
        self._submitted = self.context.now()
        self.context.monitor(start.driver)
        try:
            submitted: Submitted = await self.context.ask(
                start.driver,
                Submit(
                    session=self.context.self_ref,
                    prompt=start.prompt,
                    sampling=start.request.sampling,
                    seed=start.seed,
                    max_tokens=start.max_tokens,
                    logprobs=start.request.logprobs,
                    eos=self._eos,
                    min_tokens=start.request.min_tokens,
                ),
                SUBMIT_SECONDS,
            )
        except ActorStopped as fault:
            self._end(NotTaken(fault))
        except RuntimeFault as fault:
            self._end(fault)
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
                self._end(fault_named(code)(text))
            case Down(_, reason):
                what = "was lost" if reason == "noconnection" else "ended"
                self._end(ActorStopped(f"the model's driver {what}; send the request again"))
        return None

    async def stopped(self) -> None:
        """Tell the driver to stop, if it is still generating for this session, and the reader that this is the end."""
        if not self._ended:
            self._cancel()
            self._end(ActorStopped("the generation was stopped by the node; send the request again"))

    def _on_token(self, token: Token) -> None:
        if token.index != len(self._tokens):
            self._cancel()
            self._end(
                ProtocolError(f"token {len(self._tokens)} was lost on its way from the driver; send the request again")
            )
            return
        if self._first is None:
            self._first = self.context.now()
        self._tokens.append(token.token)
        self._counted(len(self._tokens))
        if token.reason == "stop":
            self._finish(FinishReason.STOP)
            return
        piece = self._text.feed(token.token, may_stop=len(self._tokens) > self._start.request.min_tokens)
        if token.logprob is not None:
            text = self._tokenizer.token_text
            top = tuple((text(other), logprob) for other, logprob in token.top)
            self._held.append(ScoredToken(text(token.token), token.logprob, top))
        self._put(piece.text)
        if piece.stop is not None:
            self._finish(FinishReason.STOP, piece.stop)
        elif token.reason is not None:
            self._finish(FinishReason(token.reason))

    def _finish(self, reason: FinishReason, stop: str | None = None) -> None:
        if stop is None:
            rest = self._text.finish()
            self._put(rest.text)
            if rest.stop is not None:
                reason, stop = FinishReason.STOP, rest.stop
        now = self.context.now()
        first = self._first if self._first is not None else now
        if stop is not None:
            # The driver knows nothing of stop texts; it generates until it is told.
            self._cancel()
        self._end(
            Finished(
                reason,
                Usage(len(self._start.prompt), len(self._tokens)),
                Timings(
                    load=self._start.load_seconds,
                    prefill=first - self._submitted,
                    decode=now - first,
                    total=now - self._start.began,
                ),
                stop,
            )
        )

    def _cancel(self) -> None:
        if self._sequence is None:
            return
        try:
            self.context.tell(self._start.driver, Cancel(self._sequence))
        except RuntimeFault:
            return  # the driver is gone, and the generation with it

    def _put(self, text: str) -> None:
        if text or self._held:
            self._outbox.put_nowait(Delta(text, tuple(self._held)))
            self._held.clear()

    def _end(self, outcome: Finished | RuntimeFault | NotTaken) -> None:
        self._ended = True
        self._outbox.put_nowait(outcome)
        self.context.stop_self()
