"""What a frontend asks of the runtime, and what it hears back.

``Engine.generate`` yields one :class:`Started`, any number of :class:`Delta` and :class:`Waiting`, and one
:class:`Finished`. Closing the iterator early (the client went away) cancels the generation everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any

import msgspec

from runtime.spi.source import Progress


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation, put into the model's own chat template. A last turn of the assistant is continued."""

    messages: tuple[ChatMessage, ...]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Text to continue as it is; special tokens such as a leading BOS are added as the tokenizer does."""

    text: str


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """Token ids to continue."""

    ids: tuple[int, ...]


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen. The defaults sample from the plain distribution."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Multiplicative, 1 is off (https://arxiv.org/abs/1909.05858)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context: int = 64
    """How many of the last tokens the penalties look at."""
    penalize_prompt: bool = True
    """Whether the presence and frequency penalties count tokens of the prompt, too; the repetition penalty does."""
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """The same seed, prompt and settings give the same text. None draws one."""


LONGEST_KEEP_ALIVE = 100 * 365.25 * 86_400
"""Seconds; a hundred years. Later times than that have no date in every calendar; negative is for ever."""


class GenerationRequest(msgspec.Struct, frozen=True):
    """One generation."""

    model: str
    prompt: Chat | Text | Tokens
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """None is until the model stops or its context is full."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the output."""
    logprobs: int | None = None
    """With each token, its log-probability and those of this many likeliest tokens. None is off."""
    ignore_eos: bool = False
    """Go on past the model's end-of-text token; for benchmarks."""
    min_tokens: int = 0
    """Tokens to generate before the end-of-text token may be chosen, and before stop texts are looked for."""
    keep_alive: float | None = None
    """Seconds to keep the model loaded afterwards; None is the configured time, negative is for ever."""
    truncate: bool = False
    """When the prompt is over the context, drop its oldest tokens (Ollama) instead of refusing it (OpenAI)."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class Usage(msgspec.Struct, frozen=True):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt, that were not computed again because they were in a cache."""


class Timings(msgspec.Struct, frozen=True):
    """Where the time went, in seconds."""

    load: float
    """Waiting for the model to be loaded."""
    prefill: float
    """From the prompt's first forward pass to the first token."""
    decode: float
    """From the first token to the last."""
    total: float


class TokenText(msgspec.Struct, frozen=True):
    """A token as text, with its bytes, because one character can span several tokens."""

    id: int
    text: str
    bytes: bytes


class ScoredToken(msgspec.Struct, frozen=True):
    """A sampled token and, when asked for, its natural-log probability and the likeliest alternatives."""

    token: TokenText
    logprob: float
    top: tuple[tuple[TokenText, float], ...] = ()


class Started(msgspec.Struct, frozen=True):
    """The prompt was accepted."""

    prompt_tokens: int
    load_seconds: float


class Delta(msgspec.Struct, frozen=True):
    """More text. It is never empty, except to carry ``tokens`` whose text is still held back."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()
    """Filled when the request asked for ``logprobs``."""


class Finished(msgspec.Struct, frozen=True):
    """The end."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop: str | None = None
    """The stop text that ended it, if one did."""


class Waiting(msgspec.Struct, frozen=True):
    """Nothing new for a while, and the generation goes on: a node was lost and others take over, or a step is long.

    Where the protocol has room for a sign of life the client gets one, so that it does not give up. It comes only
    after the first :class:`Delta` or token whose text is held back.
    """


GenerationEvent = Started | Delta | Waiting | Finished


class ModelCard(msgspec.Struct, frozen=True):
    """What is known of a model from its files."""

    name: str
    source: str
    bytes: int
    modified: float
    """Seconds since the epoch."""
    architecture: str
    """mlx-lm's ``model_type``."""
    parameters: int
    """Number of weights."""
    quantization: str
    """``F16``, ``BF16``, ``F32``, or as ``4bit/32`` (bits and group size)."""
    context: int
    layers: int
    hidden_size: int
    digest: str
    """SHA-256 over the configuration, the tokenizer, the tensor headers and samples of the weights, in hex."""
    chat_template: str | None
    license: str | None
    config: dict[str, Any]


class LoadedModel(msgspec.Struct, frozen=True):
    """A model that is being served, and where."""

    name: str
    digest: str
    context: int
    stages: tuple[LoadedStage, ...]
    expires: float | None
    """Seconds since the epoch when it will be unloaded if nobody asks for it; None is never."""
    active: int
    """Generations in progress."""

    @property
    def bytes(self) -> int:
        """Memory reserved for it, on all nodes."""
        return sum(stage.bytes for stage in self.stages)


class LoadedStage(msgspec.Struct, frozen=True):
    """A stage of a served model."""

    node: str
    first_layer: int
    last_layer: int
    """Inclusive."""
    bytes: int


class Engine(ABC):
    """The runtime, as a frontend sees it. Every method may be called from any task of the event loop."""

    @property
    @abstractmethod
    def default_model(self) -> str:
        """The configured ``models.default``."""

    @abstractmethod
    async def models(self) -> list[ModelCard]:
        """Models on this machine, sorted by name."""

    @abstractmethod
    async def model(self, name: str) -> ModelCard:
        """One model on this machine.

        Raises:
            ModelNotFound: with the nearest names there are.
        """

    @abstractmethod
    async def loaded(self) -> list[LoadedModel]:
        """Models being served anywhere in the cluster."""

    @abstractmethod
    async def load(self, name: str, *, keep_alive: float | None = None, progress: Progress | None = None) -> None:
        """Fetch, place and load a model, or do nothing if it is served; ``keep_alive`` as in a request."""

    @abstractmethod
    async def unload(self, name: str) -> None:
        """Let go of a model once its generations are done. Unloading what is not loaded is not an error.

        Raises:
            ModelInUse: somebody asked for it meanwhile, so it stays.
        """

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Run one generation. Raises before :class:`Started` when the request cannot be met."""
