"""Request bodies, field by field: what is implemented, what may be ignored, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from runtime.errors import InvalidRequest, UnsupportedParameter
from runtime.spi.body import MODEL_NAME_CHARACTERS, MOST_ENTRIES, StrictBody
from runtime_ollama.duration import parse_duration

MAX_TOP_LOGPROBS = 20
MOST_STOPS = 256
"""Ollama sets no limit; every piece of text is looked through for each."""
LONGEST_SECONDS = 2**63 / 1e9
"""Go counts nanoseconds in 64 bits."""


def _keep_alive(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        value = parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('must be seconds, or a duration such as "5m" or "1h30m"')  # noqa: TRY004 - pydantic reports ValueErrors only
    if not abs(value) < LONGEST_SECONDS:
        raise ValueError("is longer than 292 years; use -1 to keep the model for ever")
    return float(value)


def _stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is not None and (not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops)):
        raise ValueError("must be a string or a list of strings")
    if stops is not None and len(stops) > MOST_STOPS:
        raise ValueError(f"has {len(stops)} entries, and {MOST_STOPS} are the most")
    return stops


def _integral(value: Any) -> Any:
    # Go reads JSON numbers as floating-point, and clients in JavaScript and with sliders write 42.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


KeepAlive = Annotated[float | None, BeforeValidator(_keep_alive)]
Stops = Annotated[list[str] | None, BeforeValidator(_stop)]
Whole = Annotated[int | None, BeforeValidator(_integral)]


class Options(StrictBody):
    """``options``, with Ollama's defaults where the model card has none of its own (api/types.go, DefaultOptions)."""

    temperature: float | None = Field(None, ge=0)
    top_k: Whole = None
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: Whole = None
    num_predict: Annotated[Whole, Field(ge=-2)] = None
    num_ctx: Annotated[Whole, Field(ge=1)] = None
    stop: Stops = None
    repeat_penalty: float | None = Field(None, gt=0)
    repeat_last_n: Annotated[Whole, Field(ge=-1)] = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    # How llama.cpp uses its machine. Nothing here corresponds, and the answer is the same with them and without.
    numa: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    num_thread: Any = None
    num_keep: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    embedding_only: Any = None

    # Samplers that are not implemented: refused unless they are off, see refuse_unsupported.
    tfs_z: float | None = None
    typical_p: float | None = None
    mirostat: Whole = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None


class GenerationBody(StrictBody):
    """What a chat and a generation share."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS)
    stream: bool | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    # Known and refused, see refuse_unsupported.
    format: Any = None
    think: Any = None
    shift: Any = None

    @property
    def streams(self) -> bool:
        """Streaming is the default."""
        return self.stream is not False


class Message(StrictBody):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Any = None
    tool_calls: Any = None
    tool_name: Any = None
    tool_call_id: Any = None
    thinking: str | None = None
    """An earlier answer's reasoning; chat templates leave it out of the history, and so does this server."""


class ChatBody(GenerationBody):
    """``POST /api/chat``."""

    messages: list[Message] | None = Field(None, max_length=MOST_ENTRIES, fail_fast=True)
    tools: Any = None


class GenerateBody(GenerationBody):
    """``POST /api/generate``."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None

    # Known and refused, see refuse_unsupported.
    suffix: Any = None
    template: Any = None
    context: Any = None
    images: Any = None
    width: Any = None
    height: Any = None
    steps: Any = None


class ShowBody(StrictBody):
    """``POST /api/show``. ``name`` is how older clients say ``model``."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS, validation_alias=AliasChoices("model", "name"))
    verbose: bool | None = None
    """Would add the tokenizer's tables, which are not part of the answer here."""


_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == "",
    "think": lambda value: value is False,
    # Without it a full context ends the answer, which is all that happens here.
    "shift": lambda value: value is False,
    "tools": lambda value: value == [],
    "suffix": lambda value: value == "",
    "template": lambda value: value == "",
    "context": lambda value: value == [],
    "images": lambda value: value == [],
    "width": lambda value: value == 0,
    "height": lambda value: value == 0,
    "steps": lambda value: value == 0,
}
_HARMLESS_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "tfs_z": lambda value: value == 1,
    "typical_p": lambda value: value == 1,
    "mirostat": lambda value: value == 0,
    "penalize_newline": lambda value: value is True,
}
_MESSAGE_FIELDS = ("images", "tool_calls", "tool_name", "tool_call_id")


def refuse_unsupported(body: GenerationBody) -> None:
    """Name the first field that asks for what is not implemented.

    Raises:
        UnsupportedParameter: ignoring the field would give another answer than the one asked for.
        InvalidRequest: fields contradict one another.
    """
    _refuse_fields(body, _HARMLESS, "")
    if body.options is not None:
        _refuse_fields(body.options, _HARMLESS_OPTIONS, "options.")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest('"top_logprobs" needs "logprobs": true', param="top_logprobs")
    match body:
        case GenerateBody() if body.raw and body.system:
            raise InvalidRequest('"system" has no place in a raw prompt; put it into the prompt', param="system")
        case ChatBody():
            for index, message in enumerate(body.messages or []):
                _refuse_in_message(message, f"messages[{index}]")
        case _:
            pass


def _refuse_fields(body: StrictBody, harmless: dict[str, Callable[[Any], bool]], path: str) -> None:
    for name, is_harmless in harmless.items():
        value = getattr(body, name, None)
        if value is not None and not is_harmless(value):
            raise UnsupportedParameter(
                f'"{path}{name}" is not supported by this server; leave it out', param=f"{path}{name}"
            )


def _refuse_in_message(message: Message, path: str) -> None:
    if message.role == "tool":
        raise UnsupportedParameter('messages of the role "tool" are not supported, as tools are not', param=path)
    for name in _MESSAGE_FIELDS:
        if getattr(message, name) not in (None, [], ""):
            raise UnsupportedParameter(f'"{path}.{name}" is not supported by this server; leave it out', param=path)
