"""One request for completions while it runs: its choices side by side, streamed or collected."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence

import anyio
from msgspec import UNSET, UnsetType

from runtime.errors import ActorStopped
from runtime.spi import (
    Delta,
    Engine,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    ScoredToken,
    Started,
    Waiting,
)
from runtime.spi.streaming import Write, generation
from runtime_openai.render import (
    SERVER_SENT_DONE,
    SERVER_SENT_KEEP_ALIVE,
    Answer,
    AnyChoice,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    Completion,
    TextChoice,
    TextLogprobs,
    UsageCounts,
    server_sent,
)


class Choice:
    """What one generation has said so far."""

    def __init__(self, index: int, prefix: str = "") -> None:
        self.index = index
        self.pieces = [prefix] if prefix else []
        self.tokens: list[ScoredToken] = []
        self.offset = len(prefix)
        """Characters of the text before the next token."""
        self.finished: Finished | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def end(self) -> Finished:
        """How it ended."""
        assert self.finished is not None  # noqa: S101 - asked for only after every generation has ended
        return self.finished

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        return self.end.reason.value


class Form(ABC):
    """How chats and completions differ."""

    whole: str
    chunk: str
    identity: str

    @abstractmethod
    def choice(self, choice: Choice, scored: bool) -> ChatChoice | TextChoice:
        """Render a finished choice."""

    @abstractmethod
    def opening(self, choice: Choice) -> ChatChunkChoice | TextChoice | None:
        """Render what comes before a choice's first text."""

    @abstractmethod
    def delta(self, choice: Choice, delta: Delta) -> ChatChunkChoice | TextChoice:
        """Render more text."""

    @abstractmethod
    def ending(self, choice: Choice) -> ChatChunkChoice | TextChoice:
        """Render the end of a choice."""


class ChatForm(Form):
    """``/v1/chat/completions``."""

    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    identity = "chatcmpl"

    def choice(self, choice: Choice, scored: bool) -> ChatChoice:
        """A message."""
        logprobs = ChatLogprobs.of(choice.tokens) if scored else None
        return ChatChoice(choice.index, Answer("assistant", choice.text), choice.finish_reason, logprobs)

    def opening(self, choice: Choice) -> ChatChunkChoice:
        """The role."""
        return ChatChunkChoice(choice.index, ChatDelta(role="assistant", content=""))

    def delta(self, choice: Choice, delta: Delta) -> ChatChunkChoice:
        """More of the message."""
        logprobs = ChatLogprobs.of(list(delta.tokens)) if delta.tokens else None
        return ChatChunkChoice(choice.index, ChatDelta(content=delta.text), logprobs=logprobs)

    def ending(self, choice: Choice) -> ChatChunkChoice:
        """The reason."""
        return ChatChunkChoice(choice.index, ChatDelta(), choice.finish_reason)


class TextForm(Form):
    """``/v1/completions``."""

    whole = "text_completion"
    chunk = "text_completion"
    identity = "cmpl"

    def choice(self, choice: Choice, scored: bool) -> TextChoice:
        """The text, with the prompt before it if it was to be echoed."""
        logprobs = TextLogprobs.of(choice.tokens, 0) if scored else None
        return TextChoice(choice.index, choice.text, choice.finish_reason, logprobs)

    def opening(self, choice: Choice) -> TextChoice | None:
        """The echoed prompt, if any."""
        return TextChoice(choice.index, choice.text) if choice.pieces else None

    def delta(self, choice: Choice, delta: Delta) -> TextChoice:
        """More text."""
        logprobs = TextLogprobs.of(list(delta.tokens), choice.offset) if delta.tokens else None
        return TextChoice(choice.index, delta.text, logprobs=logprobs)

    def ending(self, choice: Choice) -> TextChoice:
        """The reason."""
        return TextChoice(choice.index, "", choice.finish_reason)


class Run:
    """All generations of one request."""

    def __init__(
        self,
        engine: Engine,
        form: Form,
        requests: list[GenerationRequest],
        *,
        choices_per_prompt: int = 1,
        prefixes: list[str] | None = None,
    ) -> None:
        self._engine = engine
        self._form = form
        self._requests = requests
        self._per_prompt = choices_per_prompt
        self._choices = [Choice(index, prefix) for index, prefix in enumerate(prefixes or [""] * len(requests))]
        self._id = f"{form.identity}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def collect(self) -> Completion:
        """Run to the end and return the whole answer."""

        async def ignore(choice: Choice, event: GenerationEvent) -> None:
            del choice, event

        await self._generate(ignore)
        scored = self._requests[0].logprobs is not None
        choices = [self._form.choice(choice, scored) for choice in self._choices]
        return self._envelope(self._form.whole, choices, self._usage())

    async def stream(self, write: Write, *, include_usage: bool) -> None:
        """Run and write every event as it comes, then the end."""
        # With usage asked for, every chunk has the field, and it is null in all but the last.
        usage = None if include_usage else UNSET

        async def relay(choice: Choice, event: GenerationEvent) -> None:
            rendered: ChatChunkChoice | TextChoice | None
            match event:
                case Waiting():
                    await write(SERVER_SENT_KEEP_ALIVE)
                    return
                case Started():
                    rendered = self._form.opening(choice)
                case Delta():
                    rendered = self._form.delta(choice, event)
                case Finished():
                    rendered = self._form.ending(choice)
            if rendered is not None:
                await write(server_sent(self._envelope(self._form.chunk, [rendered], usage)))

        await self._generate(relay)
        if include_usage:
            await write(server_sent(self._envelope(self._form.chunk, [], self._usage())))
        await write(SERVER_SENT_DONE)

    async def _generate(self, observe: Callable[[Choice, GenerationEvent], Awaitable[None]]) -> None:
        """Run every choice at once. The first failure ends them all."""

        async def one(choice: Choice, request: GenerationRequest) -> None:
            async with generation(self._engine, request) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        if event.reason is FinishReason.CANCELLED:
                            raise ActorStopped("the generation was cancelled before it was complete; send it again")
                        choice.finished = event
                    await observe(choice, event)
                    if isinstance(event, Delta):
                        choice.pieces.append(event.text)
                        choice.tokens += event.tokens
                        choice.offset += sum(len(scored.token.text) for scored in event.tokens)

        if len(self._requests) == 1:
            await one(self._choices[0], self._requests[0])
            return
        failures: list[Exception] = []

        async def guarded(choice: Choice, request: GenerationRequest) -> None:
            try:
                await one(choice, request)
            except Exception as error:  # noqa: BLE001 - raised again below, where the group cannot wrap it
                failures.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for choice, request in zip(self._choices, self._requests, strict=True):
                tasks.start_soon(guarded, choice, request)
        if failures:
            raise failures[0]

    def _usage(self) -> UsageCounts:
        return UsageCounts.of([choice.end.usage for choice in self._choices], self._per_prompt)

    def _envelope(self, kind: str, choices: Sequence[AnyChoice], usage: UsageCounts | UnsetType | None) -> Completion:
        return Completion(
            id=self._id,
            object=kind,
            created=self._created,
            model=self._requests[0].model,
            choices=choices,
            usage=usage,
        )
