"""Request bodies, field by field: what is implemented, what may be ignored, and what must be refused.

A field that changes the answer is implemented or refused; one that by its own definition does not change it (labels,
billing, caching) is accepted and ignored; anything else is a spelling mistake and is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field

from runtime.errors import InvalidRequest, UnsupportedParameter
from runtime.spi.body import MODEL_NAME_CHARACTERS, MOST_ENTRIES, StrictBody

MAX_CHOICES = 16
"""Generations for one request, over all its prompts."""
MAX_STOPS = 16
"""OpenAI takes 4; there is no reason here to."""
MAX_TOP_LOGPROBS = 20


def _stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"has {len(stops)} entries, and {MAX_STOPS} are the most")
    if "" in stops:
        raise ValueError("has an empty string, which would end every answer before it begins")
    return stops


def _content(value: Any) -> Any:
    """Join parts of text. Other kinds of part are refused by name."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content parts")  # noqa: TRY004 - pydantic reports ValueErrors only
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is None:
            raise ValueError('has a part without a "type"')
        if kind != "text":
            raise UnsupportedParameter(
                f'content parts of type "{str(kind)[:60]}" are not supported; this server takes text only',
                param="messages",
            )
        if not isinstance(part.get("text"), str):
            raise ValueError('has a part of type "text" without a string as its "text"')  # noqa: TRY004 - pydantic reports ValueErrors only
        texts.append(part["text"])
    return "".join(texts)


def _prompt(value: Any) -> Any:
    """Make a list of prompts, each a string or a list of token ids, of the four forms there are."""
    match value:
        case str():
            return [value]
        case [] | None:
            raise ValueError("is empty")
        case list() if all(isinstance(item, str) for item in value):
            return value
        case list() if all(_is_token(item) for item in value):
            return [value]
        case list() if all(isinstance(item, list) and item and all(map(_is_token, item)) for item in value):
            return value
        case _:
            raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0


def _logit_bias(value: Any) -> Any:
    """JSON has only strings as keys; they are token ids."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and biases")  # noqa: TRY004 - pydantic reports ValueErrors only
    biases = {}
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdecimal()):
            raise ValueError(f"has the key {token!r}, which is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"gives token {token} the bias {bias!r}, which is not a number from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


Stops = Annotated[list[str] | None, BeforeValidator(_stop)]
Biases = Annotated[dict[int, float] | None, BeforeValidator(_logit_bias)]
Content = Annotated[str | None, BeforeValidator(_content)]
Prompts = Annotated[list[str | list[int]], FailFast(), BeforeValidator(_prompt)]


class StreamOptions(StrictBody):
    """``stream_options``."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against traffic analysis; a hint, and none is sent."""


class Message(StrictBody):
    """One message. Everything but role and content belongs to what is not supported, or only labels it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    """Tells speakers of one role apart; chat templates here have no place for it."""
    refusal: str | None = None
    annotations: list[Any] | None = None
    """What clients send back of an earlier answer, always empty when it came from here."""
    audio: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    reasoning_content: Any = None


class GenerationBody(StrictBody):
    """What both kinds of completion share."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Extensions that other servers of this API have, under the names they gave them.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    ignore_eos: bool | None = None
    """Go on past the end of the text until ``max_tokens``; benchmarks need it."""
    min_tokens: int | None = Field(None, ge=0)
    """Do not end before so many tokens."""

    # Accepted and ignored: they label, bill or cache, and the answer is the same with them and without.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_ENTRIES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    # A prediction only makes the same answer faster; parallel calls only matter with tools, which are refused.
    prediction: Any = None
    parallel_tool_calls: Any = None

    # Known and refused, see refuse_unsupported.
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    moderation: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None

    # Known and refused, see refuse_unsupported.
    suffix: Any = None
    best_of: Any = None


_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "audio": lambda _: False,
    "moderation": lambda _: False,
    "reasoning_effort": lambda value: value == "none",
    "verbosity": lambda value: value == "medium",
    "web_search_options": lambda _: False,
    "suffix": lambda value: value == "",
    "best_of": lambda _: False,
}
"""Fields that are refused, and the values of theirs that ask for nothing."""

_MESSAGE_FIELDS = ("audio", "tool_calls", "tool_call_id", "function_call", "reasoning_content")


def refuse_unsupported(body: GenerationBody) -> None:
    """Name the first field that asks for what is not implemented.

    Raises:
        UnsupportedParameter: ignoring the field would give another answer than the one asked for.
        InvalidRequest: fields contradict one another.
    """
    for name, harmless in _HARMLESS.items():
        value = getattr(body, name, None)
        if value is None or harmless(value) or (name == "best_of" and value == (body.n or 1)):
            continue
        raise UnsupportedParameter(f'"{name}" is not supported by this server; leave it out', param=name)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest('"stream_options" needs "stream": true', param="stream_options")
    match body:
        case ChatBody():
            _refuse_in_chat(body)
        case CompletionBody():
            _refuse_in_completion(body)


def _refuse_in_chat(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest('"top_logprobs" needs "logprobs": true', param="top_logprobs")
    for index, message in enumerate(body.messages):
        path = f"messages[{index}]"
        if message.role in ("tool", "function"):
            raise UnsupportedParameter(
                f'messages of the role "{message.role}" are not supported, as tools are not', param=f"{path}.role"
            )
        for name in _MESSAGE_FIELDS:
            # Clients send earlier answers back whole, with empty lists for what was not used.
            if getattr(message, name) not in (None, []):
                raise UnsupportedParameter(
                    f'"{name}" in a message is not supported by this server; leave it out', param=f"{path}.{name}"
                )
        if message.content is None:
            raise InvalidRequest(f'"{path}.content" is required for the role "{message.role}"', param=f"{path}.content")


def _refuse_in_completion(body: CompletionBody) -> None:
    choices = len(body.prompt) * (body.n or 1)
    if choices > MAX_CHOICES:
        raise InvalidRequest(
            f'{len(body.prompt)} prompts times "n" = {body.n or 1} are {choices} completions; {MAX_CHOICES} are the '
            "most for one request",
            param="prompt",
        )
    if body.echo:
        if not all(isinstance(prompt, str) for prompt in body.prompt):
            raise UnsupportedParameter('"echo" is supported for prompts of text, not of token ids', param="echo")
        if body.logprobs is not None:
            raise UnsupportedParameter('"echo" with "logprobs" is not supported by this server', param="echo")
