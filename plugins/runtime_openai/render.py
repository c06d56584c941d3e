"""Answers and chunks of answers, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runtime.spi import ModelCard, ScoredToken, Usage

_LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for a probability of nothing, because JSON has no infinity."""


class Model(msgspec.Struct, frozen=True):
    """An entry of ``/v1/models``."""

    id: str
    created: int
    owned_by: str
    object: str = "model"

    @classmethod
    def of(cls, card: ModelCard) -> Model:
        """Describe a model."""
        return cls(id=card.name, created=int(card.modified), owned_by=card.source)


class ModelList(msgspec.Struct, frozen=True):
    """``/v1/models``."""

    data: list[Model]
    object: str = "list"


class PromptDetails(msgspec.Struct, frozen=True):
    """More about the tokens of a prompt."""

    cached_tokens: int


class UsageCounts(msgspec.Struct, frozen=True):
    """Tokens of a request, over all its choices; a prompt is counted once for them all."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, usages: list[Usage], choices_per_prompt: int) -> UsageCounts:
        """Sum up."""
        prompt = sum(usage.prompt_tokens for usage in usages[::choices_per_prompt])
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(usage.cached_tokens for usage in usages[::choices_per_prompt])
        return cls(prompt, completion, prompt + completion, PromptDetails(cached))


class Alternative(msgspec.Struct, frozen=True):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token that came."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """``logprobs`` of a chat's choice."""

    content: list[ChatLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: list[ScoredToken]) -> ChatLogprobs:
        """Put scored tokens into the form of chats."""
        return cls(
            [
                ChatLogprob(
                    scored.token.text,
                    _finite(scored.logprob),
                    list(scored.token.bytes),
                    [Alternative(token.text, _finite(logprob), list(token.bytes)) for token, logprob in scored.top],
                )
                for scored in tokens
            ]
        )


class TextLogprobs(msgspec.Struct, frozen=True):
    """``logprobs`` of a completion's choice, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]

    @classmethod
    def of(cls, tokens: list[ScoredToken], offset: int) -> TextLogprobs:
        """Put scored tokens into the form of completions; the first one starts ``offset`` characters into the text."""
        offsets = []
        for scored in tokens:
            offsets.append(offset)
            offset += len(scored.token.text)
        return cls(
            [scored.token.text for scored in tokens],
            [_finite(scored.logprob) for scored in tokens],
            [{token.text: _finite(logprob) for token, logprob in scored.top} for scored in tokens],
            offsets,
        )


class Answer(msgspec.Struct, frozen=True):
    """The message of a chat's choice."""

    role: str
    content: str
    refusal: None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """A whole choice of a chat."""

    index: int
    message: Answer
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk says of a choice of a chat."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a completion, whole or a chunk."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None


AnyChoice = ChatChoice | ChatChunkChoice | TextChoice


class Completion(msgspec.Struct, frozen=True):
    """The envelope of all of them; ``usage`` is left out where it is UNSET."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[AnyChoice]
    usage: UsageCounts | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: None = None


def server_sent(value: msgspec.Struct | dict[str, object]) -> bytes:
    """Frame one event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


SERVER_SENT_DONE = b"data: [DONE]\n\n"
SERVER_SENT_KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip (https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.7)."""


def _finite(logprob: float) -> float:
    # In this order a NaN, which compares as false, gives the stand-in too.
    return max(_LEAST_LOGPROB, logprob)
