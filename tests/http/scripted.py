"""A runtime without models: it says what it is told to, over the real HTTP server."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec

from runtime.actors import ActorInfo
from runtime.errors import ModelNotFound, PlacementRefused
from runtime.http.admin import ActorTree, NodeEntry, NodeStatus, admin_router
from runtime.http.listener import Listener, serve
from runtime.http.server import create_app
from runtime.http.settings import HttpSettings
from runtime.inference.report import LinkReport, NodeBudget, PlanReport, StageNeed
from runtime.spi import (
    Delta,
    Download,
    Engine,
    Finished,
    FinishReason,
    Frontend,
    GenerationEvent,
    GenerationRequest,
    LoadedModel,
    ModelCard,
    Part,
    Progress,
    ScoredToken,
    Started,
    Telemetry,
    Timings,
    TokenText,
    Usage,
    Waiting,
)
from runtime.spi.engine import LoadedStage
from runtime_ollama.frontend import OllamaFrontend
from runtime_openai.frontend import OpenAIFrontend

MODEL = "smollm2:135m"
WORDS = ("The", " capital", " of", " France", " is", " Paris", ".")
PROMPT_TOKENS = 11


def card(name: str = MODEL) -> ModelCard:
    """A model's card."""
    return ModelCard(
        name=name,
        source="gguf",
        bytes=144_811_232,
        modified=1_763_900_000.25,
        architecture="llama",
        parameters=134_515_008,
        quantization="F16",
        context=8192,
        layers=30,
        hidden_size=576,
        digest="ab" * 32,
        chat_template="{{ messages }}",
        license="apache-2.0",
        config={"model_type": "llama", "num_attention_heads": 9, "vocab_size": 49152, "rope_theta": 100000.0},
    )


class ScriptedEngine(Engine):
    """Says ``words``, one token each.

    ``pause_after`` waits after so many words until ``resume`` is set or the generation is closed. ``fault`` is raised
    before the first word, or after ``fault_after`` of them.
    """

    def __init__(
        self,
        words: Sequence[str] = WORDS,
        *,
        names: Sequence[str] = (MODEL, "acme/tiny-llama"),
        pause_after: int | None = None,
        fault: Exception | None = None,
        fault_after: int = -1,
        reason: FinishReason = FinishReason.STOP,
    ) -> None:
        self.words = words
        self.cards = {name: card(name) for name in names}
        self.pause_after = pause_after
        self.fault = fault
        self.fault_after = fault_after
        self.reason = reason
        self.requests: list[GenerationRequest] = []
        self.calls: list[tuple[str, str, float | None]] = []
        self.paused = anyio.Event()
        self.resume = anyio.Event()
        self.closed = anyio.Event()
        """Set when a generation is closed before its end."""

    @property
    def default_model(self) -> str:
        return MODEL

    async def models(self) -> list[ModelCard]:
        return sorted(self.cards.values(), key=lambda each: each.name)

    async def model(self, name: str) -> ModelCard:
        if name not in self.cards:
            raise ModelNotFound(f"there is no model {name!r}; did you mean {MODEL!r}?", param="model")
        return self.cards[name]

    async def loaded(self) -> list[LoadedModel]:
        stages = (LoadedStage("alpha", 0, 14, 1000), LoadedStage("beta", 15, 29, 2000))
        return [LoadedModel(MODEL, "ab" * 32, 8192, stages, 1_763_900_300.0, 1)]

    async def load(self, name: str, *, keep_alive: float | None = None, progress: Progress | None = None) -> None:
        self.calls.append(("load", name, keep_alive))
        await self.model(name)
        if progress is not None:
            await anyio.to_thread.run_sync(progress, Download(name, "downloading", 50, 100))
            await anyio.wait_all_tasks_blocked()
        if self.fault is not None:
            raise self.fault

    async def unload(self, name: str) -> None:
        self.calls.append(("unload", name, None))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        self.requests.append(request)
        complete = False
        try:
            await self.model(request.model)
            self._raise_at(-1)
            yield Started(PROMPT_TOKENS, 0.25)
            words = self.words[: request.max_tokens]
            for index, word in enumerate(words):
                if index == self.pause_after:
                    self.paused.set()
                    yield Waiting()
                    await self.resume.wait()
                self._raise_at(index)
                yield Delta(word, self._scored(word, request.logprobs))
                await anyio.lowlevel.checkpoint()
            cut = len(words) < len(self.words)
            complete = True
            yield Finished(
                FinishReason.LENGTH if cut else self.reason,
                Usage(PROMPT_TOKENS, len(words)),
                Timings(load=0.25, prefill=0.5, decode=1.0, total=1.75),
            )
        finally:
            if not complete:
                self.closed.set()

    def _raise_at(self, index: int) -> None:
        if self.fault is not None and self.fault_after == index:
            raise self.fault

    def _scored(self, word: str, top: int | None) -> tuple[ScoredToken, ...]:
        if top is None:
            return ()
        token = TokenText(len(word), word, word.encode())
        rare = (TokenText(1, "\ufffd", b"\xf0\x9f"), -math.inf)
        return (ScoredToken(token, -0.5, ((token, -0.5), rare)[:top]),)


class ScriptedPlugin(msgspec.Struct, frozen=True):
    """A line of ``/runtime/v1/plugins``."""

    name: str
    status: str


class ScriptedInspector:
    """A node of two."""

    def status(self) -> NodeStatus:
        return NodeStatus(
            node="alpha",
            version="0.1.0",
            pid=4711,
            uptime=61.5,
            backend="cpu",
            blas="OpenBLAS 0.3.30",
            memory_total=16 * 2**30,
            memory_available=8 * 2**30,
            memory_reserved=3000,
            nodes=2,
            models=1,
            active=1,
            default_model=MODEL,
            urls=("http://127.0.0.1:11434",),
        )

    def nodes(self) -> list[NodeEntry]:
        return [
            NodeEntry("alpha", "self", "127.0.0.1:7001", "cpu", 16 * 2**30, 8 * 2**30, "0.1.0", None, None, None, None),
            NodeEntry(
                "beta",
                "down",
                "127.0.0.1:7002",
                "metal",
                2**30,
                2**29,
                "0.1.0",
                0.0021,
                9.5,
                12.0,
                "no answer to probes",
            ),
        ]

    def actors(self) -> ActorTree:
        return ActorTree(
            [
                ActorInfo("/models", None, 0, 12, 0, None, 3600.0),
                ActorInfo("/models/1", "/models", 3, 450, 2, "ValueError('boom')", 61.0),
                ActorInfo("/sessions/1", None, 0, 7, 0, None, 1.0),
            ],
            {"late_reply": 2},
        )

    def plugins(self) -> list[ScriptedPlugin]:
        return [ScriptedPlugin("openai", "loaded")]

    async def plan(self, model: str, context: int | None) -> PlanReport:
        if context == 1:
            raise PlacementRefused(f"{model} does not fit.\n\nWhat would help: more memory.")
        return PlanReport(
            model=model,
            layers=30,
            context=context or 8192,
            sequences=4,
            prefill_chunk=128,
            prefill_chunk_asked=512,
            dtype="float32",
            dequantize=True,
            reason="30 layers cut for latency: alpha 20, beta 10; 12 ms a token; gamma would not make it faster",
            stages=(
                StageNeed("alpha", 0, 19, 3 << 30, (Part("weights", 2 << 30), Part("KV cache", 1 << 30))),
                StageNeed("beta", 20, 29, 1 << 30, (Part("weights", 1 << 30),)),
            ),
            nodes=(
                NodeBudget("alpha", "cpu", 8 << 30, 5 << 30, 1 << 30, 0, 4 << 30, 3 << 30, 0.0105),
                NodeBudget("beta", "metal", 4 << 30, 2 << 30, 0, 1 << 30, 2 << 30, 1 << 30, None),
            ),
            links=(LinkReport("alpha", "beta", 0.0004, 110e6),),
        )


@asynccontextmanager
async def serving(
    engine: Engine,
    *,
    frontends: dict[str, Frontend] | None = None,
    telemetry: dict[str, Telemetry] | None = None,
    **settings: object,
) -> AsyncIterator[Listener]:
    """Serve an engine on a free port."""
    both: dict[str, Frontend] = {"openai": OpenAIFrontend(), "ollama": OllamaFrontend()}
    http = msgspec.convert({"port": 0, "shutdown_seconds": 1, **settings}, HttpSettings)
    app = create_app(
        both if frontends is None else frontends,
        telemetry or {},
        engine,
        admin_router(engine, ScriptedInspector()),
        http,
    )
    async with serve(app, http) as listener:
        yield listener


def internal_bug() -> Exception:
    """An exception that no user should see."""
    return ZeroDivisionError("secret detail")
