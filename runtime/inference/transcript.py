"""The record of one generation: what its text depends on, and what it has said so far.

It is kept on the node that took the request and outlives every driver: with it, any driver can go on where another
one was lost. Randomness is keyed by seed and position (:mod:`runtime.inference.sampling`), so what follows is the same
text.
"""

from __future__ import annotations

import msgspec

from runtime.actors import ActorRef
from runtime.errors import ModelError, PlacementRefused, ProtocolError, RuntimeFault
from runtime.inference.prompt import Tokenizer
from runtime.inference.protocol import Ready, Submit, Token
from runtime.inference.text import TextStream
from runtime.spi import Chat, Delta, Finished, FinishReason, GenerationRequest, ScoredToken, Timings, Usage


class Said(msgspec.Struct, frozen=True):
    """What a token led to."""

    deltas: tuple[Delta, ...] = ()
    finished: Finished | None = None
    fault: RuntimeFault | None = None
    """Why the text ends here though it is not complete."""


class Transcript:
    """One generation."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        max_tokens: int,
        seed: int,
        owner: str,
        tokenizer: Tokenizer,
        *,
        began: float,
        load_seconds: float,
    ) -> None:
        """Begin with nothing said.

        Args:
            request: what the client asked.
            prompt: its tokens, as they fit the context.
            max_tokens: of the completion, as they fit the context.
            seed: used where the request states none.
            owner: who asks.
            tokenizer: the model's.
            began: when the request came, on the event loop's clock.
            load_seconds: how long it waited for the model.
        """
        self.request = request
        self.prompt = prompt
        self.tokens: list[int] = []
        self._max_tokens = max_tokens
        self._seed = seed
        self._owner = owner
        self._tokenizer = tokenizer
        self._eos = () if request.ignore_eos else tokenizer.eos_ids
        continues = not isinstance(request.prompt, Chat)
        self._text = TextStream(tokenizer.detokenizer(continues=continues), request.stop)
        self._held: list[ScoredToken] = []
        self._began = began
        self._load_seconds = load_seconds
        self._submitted: float | None = None
        self._first: float | None = None
        self._cached = 0

    def submission(self, session: ActorRef, context: int, now: float) -> Submit:
        """Return what a driver that serves the model with ``context`` tokens is asked: what is left to generate."""
        if self._submitted is None:
            self._submitted = now
        return Submit(
            session=session,
            prompt=self.prompt,
            sampling=self.request.sampling,
            seed=self._seed,
            max_tokens=min(self._max_tokens, context - len(self.prompt)),
            logprobs=self.request.logprobs,
            eos=self._eos,
            min_tokens=self.request.min_tokens,
            owner=self._owner,
            generated=tuple(self.tokens),
        )

    def refusal(self, digest: str, ready: Ready) -> RuntimeFault | None:
        """Return why a driver cannot go on with this generation, None if it can; ``digest`` is the model's so far."""
        model = self.request.model
        if ready.digest != digest:
            return ModelError(f"the files of {model} have changed meanwhile; send the request again")
        if len(self.prompt) + len(self.tokens) >= ready.context:
            return self._no_room(ready.context)
        return None

    def take(self, token: Token, now: float) -> Said:
        """Take the next token.

        Raises:
            ProtocolError: it is not the next one.
        """
        if token.index != len(self.tokens):
            raise ProtocolError(f"token {len(self.tokens)} was lost on its way from the driver")
        if self._first is None:
            self._first, self._cached = now, token.cached
        self.tokens.append(token.token)
        if token.reason == "stop":
            return self._finish((), FinishReason.STOP, now)
        piece = self._text.feed(token.token, may_stop=len(self.tokens) > self.request.min_tokens)
        if token.logprob is not None:
            text = self._tokenizer.token_text
            top = tuple((text(other), logprob) for other, logprob in token.top)
            self._held.append(ScoredToken(text(token.token), token.logprob, top))
        deltas = self._deltas(piece.text)
        if piece.stop is not None:
            return self._finish(deltas, FinishReason.STOP, now, piece.stop)
        if token.reason == "length" and len(self.tokens) < self._max_tokens:
            return Said(deltas, fault=self._no_room(len(self.prompt) + len(self.tokens)))
        if token.reason is not None:
            return self._finish(deltas, FinishReason(token.reason), now)
        return Said(deltas)

    def _finish(self, deltas: tuple[Delta, ...], reason: FinishReason, now: float, stop: str | None = None) -> Said:
        if stop is None:
            rest = self._text.finish()
            deltas += self._deltas(rest.text)
            if rest.stop is not None:
                reason, stop = FinishReason.STOP, rest.stop
        first = now if self._first is None else self._first
        timings = Timings(
            load=self._load_seconds,
            prefill=first - (self._began if self._submitted is None else self._submitted),
            decode=now - first,
            total=now - self._began,
        )
        return Said(
            deltas,
            Finished(
                reason, Usage(len(self.prompt), len(self.tokens), min(self._cached, len(self.prompt))), timings, stop
            ),
        )

    def _deltas(self, text: str) -> tuple[Delta, ...]:
        if not text and not self._held:
            return ()
        delta = Delta(text, tuple(self._held))
        self._held.clear()
        return (delta,)

    def _no_room(self, context: int) -> PlacementRefused:
        """What is left of the cluster holds a shorter context than the one that the generation began with."""
        return PlacementRefused(
            f"without the node that was lost {self.request.model} is served with a context of {context} tokens, which "
            "is too short to complete this text"
        )
