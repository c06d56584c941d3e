"""Answers and lines of answers. Fields that are UNSET are left out, as Ollama leaves out what is empty."""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET, UnsetType

from runtime.spi import Delta, Finished, ScoredToken, TokenText
from runtime_ollama.duration import nanoseconds, rfc3339


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token and its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int]

    @classmethod
    def of(cls, token: TokenText, logprob: float) -> TokenLogprob:
        """Describe a token. JSON has no infinity, so the least probability is bounded."""
        return cls(token.text, max(-9999.0, logprob), list(token.bytes))


class Logprob(msgspec.Struct, frozen=True):
    """A token that came, and the likeliest at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob] | UnsetType = UNSET

    @classmethod
    def of(cls, scored: ScoredToken) -> Logprob:
        """Describe a sampled token."""
        came = TokenLogprob.of(scored.token, scored.logprob)
        top = [TokenLogprob.of(token, logprob) for token, logprob in scored.top]
        return cls(came.token, came.logprob, came.bytes, top or UNSET)


class Answer(msgspec.Struct, frozen=True):
    """The message of a chat's line."""

    role: str
    content: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a stream, or the whole answer: ``message`` for a chat, ``response`` for a generation."""

    model: str
    created_at: str
    message: Answer | UnsetType = UNSET
    response: str | UnsetType = UNSET
    logprobs: list[Logprob] | UnsetType = UNSET
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class Renderer:
    """Makes the lines of one request."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        """The name as the client wrote it."""
        self._chat = chat

    def delta(self, delta: Delta) -> Line:
        """More text."""
        return self._line(delta.text, done=False, logprobs=self._logprobs(delta.tokens))

    def loaded(self, done_reason: str) -> Line:
        """The answer to a request without a prompt, which only loads or unloads."""
        return self._line("", done=True, done_reason=done_reason)

    def end(self, finished: Finished, text: str = "", tokens: tuple[ScoredToken, ...] = ()) -> Line:
        """The end, with the counts and durations; and with the whole text, where it was not streamed."""
        timings, usage = finished.timings, finished.usage
        return msgspec.structs.replace(
            self._line(text, done=True, done_reason=finished.reason.value, logprobs=self._logprobs(tokens)),
            total_duration=nanoseconds(timings.total),
            load_duration=nanoseconds(timings.load),
            prompt_eval_count=usage.prompt_tokens,
            prompt_eval_duration=nanoseconds(timings.prefill),
            eval_count=usage.completion_tokens,
            eval_duration=nanoseconds(timings.decode),
        )

    def _line(
        self,
        text: str,
        *,
        done: bool,
        done_reason: str | UnsetType = UNSET,
        logprobs: list[Logprob] | UnsetType = UNSET,
    ) -> Line:
        return Line(
            model=self._model,
            created_at=rfc3339(time.time_ns()),
            message=Answer("assistant", text) if self._chat else UNSET,
            response=UNSET if self._chat else text,
            logprobs=logprobs,
            done=done,
            done_reason=done_reason,
        )

    def _logprobs(self, tokens: tuple[ScoredToken, ...]) -> list[Logprob] | UnsetType:
        return [Logprob.of(scored) for scored in tokens] or UNSET
