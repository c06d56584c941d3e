"""The engine: what frontends call. It joins the catalogue, the models' drivers, the tokenizers and the sessions."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from loguru import logger

from runtime.actors import ActorRef, ActorSystem, Restart
from runtime.cluster import ServedModel
from runtime.errors import ActorStopped, ModelNotFound, NodeUnhealthy, PeerUnreachable, RuntimeFault
from runtime.inference.accelerator import is_prepared, prepare
from runtime.inference.borrowing import Borrower, open_same
from runtime.inference.catalogue import Catalogue
from runtime.inference.compute import ComputeThread
from runtime.inference.models import MODELS
from runtime.inference.progress import ProgressBoard
from runtime.inference.prompt import Tokenizer
from runtime.inference.protocol import EnsureModel, NoSubmit, Ready, Unload
from runtime.inference.recovery import Patience, given_up
from runtime.inference.request import check_request, fit_context
from runtime.inference.session import Lost, Outcome, Session
from runtime.inference.stage import LOAD_SECONDS
from runtime.inference.telemetry import emit_all
from runtime.inference.transcript import Transcript
from runtime.spi import (
    Delta,
    Engine,
    Finished,
    GenerationEvent,
    GenerationRequest,
    LoadedModel,
    LoadedStage,
    ModelCard,
    Progress,
    RequestFinished,
    Started,
    Telemetry,
    Waiting,
)
from runtime.spi.caller import CALLER

UNLOAD_SECONDS = 600.0
"""How long an unload waits for generations in progress."""
KEEP_ALIVE_SECONDS = 2.0
"""How long a generation that has begun may say nothing before the client is told that it goes on."""
TOKENIZERS = 4
"""Tokenizers that are kept in memory, which take some tens of megabytes each."""
ENCODERS = 4
"""Threads that turn prompts into tokens, so that they wait for no download and no listing."""

T = TypeVar("T")


class RuntimeEngine(Engine):
    """The engine of a node.

    Args:
        served: what is known to be served anywhere in the cluster.
        borrower: takes files from other nodes; None where nodes share none.
    """

    def __init__(
        self,
        system: ActorSystem,
        catalogue: Catalogue,
        compute: ComputeThread,
        board: ProgressBoard,
        served: Callable[[], Sequence[ServedModel]],
        telemetry: tuple[Telemetry, ...],
        default_model: str,
        borrower: Borrower | None = None,
    ) -> None:
        self._borrower = borrower
        self._system = system
        self._catalogue = catalogue
        self._compute = compute
        self._board = board
        self._served = served
        self._telemetry = telemetry
        self._default_model = default_model
        self._tokenizers: dict[str, asyncio.Task[Tokenizer]] = {}
        self._encoding = CapacityLimiter(ENCODERS)
        self._sessions = itertools.count(1)

    @property
    def default_model(self) -> str:
        """The configured ``models.default``."""
        return self._default_model

    async def models(self) -> list[ModelCard]:
        """Models on this machine, sorted by name."""
        return await self._catalogue.cards()

    async def model(self, name: str) -> ModelCard:
        """One model on this machine."""
        return await self._catalogue.card(name)

    async def loaded(self) -> list[LoadedModel]:
        """Models being served anywhere in the cluster."""
        return [
            LoadedModel(
                name=entry.model,
                digest=entry.digest,
                context=entry.context,
                stages=tuple(
                    LoadedStage(stage.node, stage.span.start, stage.span.stop - 1, stage.bytes)
                    for stage in entry.stages
                ),
                expires=entry.expires,
                active=entry.active,
            )
            for entry in sorted(self._served(), key=lambda entry: entry.model)
        ]

    async def load(self, name: str, *, keep_alive: float | None = None, progress: Progress | None = None) -> None:
        """Fetch, place and load a model, or do nothing if it is served."""
        stop = self._board.watch(name, progress) if progress is not None else None
        try:
            self._let_go(await self._ensure(name, keep_alive))
        finally:
            if stop is not None:
                stop()

    async def unload(self, name: str) -> None:
        """Let go of a model once its generations are done."""
        for entry in self._served():
            if entry.model != name:
                continue
            try:
                await self._system.ask(entry.driver, Unload(), UNLOAD_SECONDS)
            except (ActorStopped, PeerUnreachable) as fault:
                logger.debug("{} is unloaded already: {}", name, fault)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Run one generation; see :class:`~runtime.spi.Engine`."""
        began = self._system.now()
        check_request(request)
        ready = await self._ensure(request.model, request.keep_alive)
        load_seconds = self._system.now() - began
        try:
            tokenizer = await self._tokenizer(request.model, ready)
            encoded = await to_thread.run_sync(tokenizer.encode, request.prompt, limiter=self._encoding)
            prompt, max_tokens = fit_context(encoded, request.max_tokens, ready.context, truncate=request.truncate)
        except BaseException:  # cancelled, too: the driver waits for whoever it told that the model is ready
            self._let_go(ready)
            raise
        transcript = Transcript(
            request,
            prompt,
            max_tokens,
            secrets.randbits(63),
            CALLER.get(),
            tokenizer,
            began=began,
            load_seconds=load_seconds,
        )
        outbox: asyncio.Queue[Outcome] = asyncio.Queue()
        report = _Report(transcript, began)
        patience = Patience(self._system.now())
        session = self._start_session(ready, transcript, outbox)
        try:
            yield Started(len(prompt), load_seconds)
            while True:
                outcome = await _within(KEEP_ALIVE_SECONDS, outbox.get())
                match outcome:
                    case Delta() | Finished():
                        patience.got_on(self._system.now())
                        report.take(outcome, self._system.now())
                        yield outcome
                        if isinstance(outcome, Finished):
                            return
                    case Lost(fault):
                        taking_up = asyncio.create_task(
                            self._take_up(transcript, ready.digest, fault, patience), name=f"resume {request.model}"
                        )
                        try:
                            while not (await asyncio.wait({taking_up}, timeout=KEEP_ALIVE_SECONDS))[0]:
                                if transcript.tokens:
                                    yield Waiting()
                            ready = taking_up.result()
                        finally:
                            taking_up.cancel()
                        session = self._start_session(ready, transcript, outbox)
                    case None:
                        if transcript.tokens:
                            yield Waiting()
                    case fault:
                        raise fault
        except RuntimeFault:
            report.reason = "error"
            raise
        finally:
            self._system.stop(session)
            event = report.event(self._system.now())
            emit_all(self._telemetry, event)
            logger.bind(model=request.model).info(
                "generated {} tokens for {} in {:.2f} s ({})",
                event.completion_tokens,
                event.prompt_tokens,
                event.duration,
                event.reason,
            )

    async def _take_up(self, transcript: Transcript, digest: str, lost: RuntimeFault, patience: Patience) -> Ready:
        """Have a generation's model served again, by whoever is left, and return its new driver.

        Raises:
            RuntimeFault: it is not, within the time there is; or the model is another one now, or has no room.
        """
        request, count = transcript.request, len(transcript.tokens)
        refusal = lost
        while (wait := patience.next_try(self._system.now())) is not None:
            logger.info("{}: resuming a generation after {} tokens: {}", request.model, count, refusal)
            await asyncio.sleep(wait)
            try:
                ready = await self._ensure(request.model, request.keep_alive)
            except RuntimeFault as fault:
                if self._system.is_draining:
                    raise  # this node stops, and the others have no client to answer
                refusal = fault
                if isinstance(fault, NodeUnhealthy):
                    patience.prolong(self._system.now())
                continue
            final = transcript.refusal(digest, ready)
            if final is None:
                return ready
            self._let_go(ready)
            raise given_up(count, lost, final)
        raise given_up(count, lost, refusal)

    def _start_session(self, ready: Ready, transcript: Transcript, outbox: asyncio.Queue[Outcome]) -> ActorRef:
        return self._system.spawn(
            lambda: Session(ready, transcript, outbox), f"sessions/{next(self._sessions)}", restart=Restart.TEMPORARY
        )

    def _let_go(self, ready: Ready) -> None:
        """Tell a driver that what it was readied for does not come."""
        try:
            self._system.tell(ready.driver, NoSubmit())
        except RuntimeFault as fault:
            logger.debug("{} is not told that nothing is submitted: {}", ready.driver, fault)

    async def _ensure(self, name: str, keep_alive: float | None) -> Ready:
        if not name:
            raise ModelNotFound(f"no model is named; the default is {self._default_model}", param="model")
        return await self._system.ask(
            ActorRef(self._system.node, f"/{MODELS}"), EnsureModel(name, keep_alive), LOAD_SECONDS
        )

    async def _tokenizer(self, model: str, ready: Ready) -> Tokenizer:
        """Return a model's tokenizer, loaded once for all who ask."""
        digest = ready.digest
        task = self._tokenizers.pop(digest, None)
        if task is None:
            task = asyncio.create_task(self._load_tokenizer(model, ready), name=f"tokenizer of {model}")
            task.add_done_callback(lambda task: self._tokenizer_loaded(digest, task))
        # The one that was used last stands last.
        self._tokenizers[digest] = task
        for oldest in list(self._tokenizers)[:-TOKENIZERS]:
            del self._tokenizers[oldest]
        return await asyncio.shield(task)

    def _tokenizer_loaded(self, digest: str, task: asyncio.Task[Tokenizer]) -> None:
        """Keep no failure, so that the next request tries again, whether anybody waited for this one or not."""
        if task.cancelled() or task.exception() is not None:
            self._tokenizers.pop(digest, None)

    async def _load_tokenizer(self, model: str, ready: Ready) -> Tokenizer:
        # Other nodes may hold all the layers; then nothing but this compares the files here with theirs.
        files = await open_same(
            self._catalogue,
            self._borrower,
            model,
            ready.digest,
            self._board.throttled(self._board.publish),
            node=self._system.node,
            driver=ready.driver.node,
        )
        # Tokenizers import mlx-lm, which the compute thread must have done first: see runtime.inference.accelerator.
        # Where it has, nothing more is asked of it: a thread that is stuck must not keep clients from other nodes.
        if not is_prepared():
            await self._compute.run(prepare)
        return await to_thread.run_sync(partial(Tokenizer, files.checkpoint), limiter=self._encoding)


class _Report:
    """Gathers what telemetry is told of one generation."""

    def __init__(self, transcript: Transcript, began: float) -> None:
        self.reason = "cancelled"
        self._transcript = transcript
        self._began = began
        self._first: float | None = None

    def take(self, outcome: Delta | Finished, now: float) -> None:
        """Take note of an event."""
        if self._first is None:
            self._first = now - self._began
        if isinstance(outcome, Finished):
            self.reason = str(outcome.reason)

    def event(self, now: float) -> RequestFinished:
        """Return the summary."""
        return RequestFinished(
            model=self._transcript.request.model,
            reason=self.reason,
            prompt_tokens=len(self._transcript.prompt),
            completion_tokens=len(self._transcript.tokens),
            time_to_first_token=self._first,
            duration=now - self._began,
        )


async def _within(seconds: float, work: Awaitable[T]) -> T | None:
    """Await something for so long; None if it has not come."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return None
