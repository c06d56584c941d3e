"""A driver: it places one model, and from then on schedules its sequences over the stages.

It runs on the node that holds the first layers, so that a token costs one hop a stage. It lives while the model is
served: its end is what closes the stages and frees their memory, however it comes about.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec
from loguru import logger

from runtime.actors import Actor, ActorRef, Down, Message, ReplyTo
from runtime.cluster import ServedModel, ServedStage, ServedState
from runtime.errors import (
    ActorStopped,
    NodeUnhealthy,
    Overloaded,
    PeerUnreachable,
    RuntimeFault,
    fault_named,
)
from runtime.inference import step_watch
from runtime.inference.capacity import Capacity
from runtime.inference.failure import as_fault
from runtime.inference.lifetime import Lifetime
from runtime.inference.placing import Placed, Placer
from runtime.inference.progress import ProgressBoard
from runtime.inference.protocol import (
    AskSteps,
    AwaitReady,
    Cancel,
    CloseSequence,
    ConnectStage,
    GiveWay,
    LoadProgress,
    NoSubmit,
    OpenSequence,
    Prefilled,
    Ready,
    Sampled,
    SequenceFailed,
    StepFailed,
    StepsHeld,
    Submit,
    Submitted,
    Token,
    Unload,
)
from runtime.inference.scheduler import Scheduler
from runtime.inference.step_watch import StepWatch
from runtime.spi import Download

ANSWER_SECONDS = 30.0
"""How long a stage may take to answer a request that needs no computing."""
PENALTY_TOKENS = 4096
"""Prompt tokens that are sent to the last stage for penalties to look back on."""

T = TypeVar("T")


class DriverLimits(msgspec.Struct, frozen=True):
    """What a driver takes on at once."""

    sequences: int
    """Generations at once, as far as the KV cache has room for them."""
    waiting: int
    """Generations that may wait beyond those."""
    prefix_cache: bool
    """Whether caches of ended generations are kept for prompts that begin alike."""
    keep_alive: float
    """Seconds without a request after which the model is unloaded; negative is never."""


class Driver(Actor):
    """Serves one model."""

    capacity = 8192

    def __init__(
        self,
        model: str,
        placer: Placer,
        limits: DriverLimits,
        board: ProgressBoard,
        publish: Callable[[ServedModel], None],
        withdraw: Callable[[str, ActorRef], None],
    ) -> None:
        self._model = model
        self._placer = placer
        self._limits = limits
        self._board = board
        self._publish = publish
        self._withdraw = withdraw
        self._placed: Placed | None = None
        self._stages: tuple[ActorRef, ...] = ()
        self._scheduler: Scheduler | None = None
        self._sessions: dict[int, ActorRef] = {}
        self._submits: dict[int, Submit] = {}
        self._ids = itertools.count(1)
        self._waiting: list[ReplyTo] = []
        self._lifetime = Lifetime(model, limits.keep_alive)

    async def started(self) -> None:
        """Begin to place and load; requests wait meanwhile."""
        self.context.start_task(self._bring_up(), "bring up")

    async def receive(self, message: Message) -> Message | None:
        """Schedule, and answer sessions."""
        match message:
            case Sampled():
                self._on_sampled(message)
            case Prefilled(number):
                self._on_done(number)
            case Submit():
                return self._on_submit(message)
            case Cancel(sequence):
                self._close(sequence)
            case StepFailed(number, text, code):
                self._on_failed(number, fault_named(code)(f"the model {self._model} failed: {text}"))
            case LoadProgress(model, node, step, done, total):
                self._board.publish(
                    Download(model, step if node == self.context.node else f"{step} on {node}", done, total)
                )
            case AwaitReady(keep_alive):
                return self._on_await_ready(keep_alive)
            case NoSubmit():
                self._lifetime.expect_one_less()
            case Unload():
                self._on_unload()
            case GiveWay(to):
                self._on_give_way(to)
            case Down(ref, reason):
                self._on_down(ref, reason)
        return None

    async def stopped(self) -> None:
        """Tell everybody who waits. The stages and the ledgers watch this actor and see for themselves."""
        gone = ActorStopped(f"the model {self._model} was unloaded; ask again to load it")
        self._fail_all(gone)
        for reply in self._waiting:
            reply.fail(gone)
        self._lifetime.ended()
        self._withdraw(self._model, self.context.self_ref)

    # -- coming up --------------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        try:
            progress = self._board.throttled(self._board.publish)  # a source reports from a thread of its own
            placed = await self._placer.place(self._model, self.context.self_ref, progress)
            await self._connect(placed)
        except Exception as error:  # noqa: BLE001 - policies, estimators and sources are plugins; callers hear the reason
            fault = as_fault(error, f"placing {self._model}")
            # A model that does not exist is a client's mistake, and no trouble of the node's.
            logger.log("INFO" if fault.http_status < 500 else "ERROR", "model {} is not served: {}", self._model, fault)
            waiting, self._waiting = self._waiting, []
            for reply in waiting:
                reply.fail(fault)
            self.context.stop_self()
            return
        self._placed = placed
        self._scheduler = Scheduler(
            Capacity(
                stages=len(self._stages),
                sequences=self._limits.sequences,
                waiting=self._limits.waiting,
                chunk=placed.workload.prefill_chunk,
                context=placed.workload.context,
                positions=placed.positions,
                batches=placed.alone is None,
                keeps=self._limits.prefix_cache,
                trims=placed.trims,
            )
        )
        if placed.alone is not None:
            logger.warning("{} takes one sequence at a time: {}", self._model, placed.alone)
        where = ", ".join(f"{stage.node}: {stage.span}" for stage in placed.plan.stages)
        logger.info("serving {} with a context of {} tokens ({})", self._model, placed.workload.context, where)
        self._announce()
        waiting, self._waiting = self._waiting, []
        for reply in waiting:
            reply.answer(self._ready())
        self.context.start_task(self._expire(), "keep alive")
        self.context.start_task(self._watch_steps(), "watch steps")

    async def _connect(self, placed: Placed) -> None:
        """Tell each stage the one after it, and watch them all."""
        self._stages = placed.stages
        for stage in self._stages:
            self.context.monitor(stage)
        following = (*self._stages[1:], None)
        await _all(
            self.context.ask(stage, ConnectStage(after), ANSWER_SECONDS)
            for stage, after in zip(self._stages, following, strict=True)
        )

    async def _expire(self) -> None:
        await self._lifetime.over(lambda: bool(self._sessions))
        self.context.stop_self()

    def _touch(self) -> None:
        self._lifetime.used()
        if self._scheduler is not None:  # else this is the end, and the model's next driver may have its entry there
            self._announce()

    # -- sessions ---------------------------------------------------------------------------------------------------

    def _on_await_ready(self, keep_alive: float | None) -> Message | None:
        better = self._lifetime.better
        if better is not None:
            raise ActorStopped(f"{self.context.self_ref} gives way to {better}, which serves {self._model} too")
        self._lifetime.wanted(self._limits.keep_alive if keep_alive is None else keep_alive)
        if self._placed is None:
            self._waiting.append(self.context.reply_later())
            return None
        self._touch()
        return self._ready()

    def _on_submit(self, request: Submit) -> Submitted:
        scheduler = self._scheduler
        if scheduler is None:
            raise ActorStopped(f"the model {self._model} is not being served; ask again to load it")
        if scheduler.is_full():
            raise Overloaded(
                f"{scheduler.load} generations with {self._model} are running and waiting, and no more are queued; "
                "try again later"
            )
        self._lifetime.expect_one_less()
        sequence = next(self._ids)
        self._sessions[sequence] = request.session
        self._submits[sequence] = request
        self.context.monitor(request.session)
        scheduler.add(sequence, request.prompt, request.max_tokens, request.eos, request.generated, request.owner)
        self._touch()
        self._go_on()
        return Submitted(sequence)

    def _go_on(self) -> None:
        """Start what there is room for, and issue the steps that can start."""
        scheduler = self._scheduler
        if scheduler is None:
            return
        for sequence in scheduler.closed():
            self._tell_closed(sequence)
        for sequence in scheduler.admit():
            self.context.start_task(self._open(sequence, self._submits[sequence]), f"open {sequence}")
        for step in scheduler.issue():
            try:
                self.context.tell(self._stages[0], step)
            except RuntimeFault as fault:
                # The mailbox of the first stage has room for more steps than are ever in flight, so it is gone.
                self._lose(fault)
                return

    async def _open(self, sequence: int, request: Submit) -> None:
        if sequence not in self._sessions:
            return  # it was closed before this task began; the stages must not hear of it now
        order = OpenSequence(
            sequence=sequence,
            prompt=request.prompt[-PENALTY_TOKENS:],
            prompt_length=len(request.prompt),
            sampling=request.sampling,
            seed=request.seed,
            logprobs=request.logprobs,
            eos=request.eos,
            min_tokens=request.min_tokens,
            generated=request.generated,
        )
        try:
            # Every stage must know the sequence before its first hidden state comes, on another connection.
            await _all(self.context.ask(stage, order, ANSWER_SECONDS) for stage in self._stages)
        except RuntimeFault as fault:
            self._fail(sequence, fault)
            return
        if sequence not in self._sessions:
            # It was closed meanwhile, and a stage may have heard that before it was told to open it.
            self._tell_closed(sequence)
        elif self._scheduler is not None:
            self._scheduler.opened(sequence)
            self._go_on()

    def _on_sampled(self, sampled: Sampled) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        scheduler.done(sampled.number, self.context.now())
        heard = [
            (chosen, progress)
            for chosen in sampled.tokens
            if (progress := scheduler.sampled(chosen.sequence, chosen.position, chosen.token)) is not None
        ]
        self._go_on()  # first of all, for the stages wait
        for chosen, progress in heard:
            self._tell_session(
                chosen.sequence,
                Token(progress.index, chosen.token, chosen.logprob, chosen.top, progress.reason, progress.cached),
            )
            if progress.reason is not None:
                self._close(chosen.sequence)

    def _on_done(self, number: int) -> None:
        if self._scheduler is not None:
            self._scheduler.done(number, self.context.now())
            self._go_on()

    def _on_failed(self, number: int, fault: RuntimeFault) -> None:
        if isinstance(fault, NodeUnhealthy):
            self._lose(fault)
        elif self._scheduler is not None:
            for sequence in self._scheduler.failed(number, self.context.now()):
                self._fail(sequence, fault)
            self._go_on()

    def _close(self, sequence: int, *, keep: bool = True) -> None:
        """Forget a sequence, here and, unless its cache is kept, on the stages."""
        session = self._sessions.pop(sequence, None)
        if session is None:
            return
        self.context.demonitor(session)
        del self._submits[sequence]
        if self._scheduler is not None:
            self._scheduler.remove(sequence, keep=keep)
        self._go_on()
        self._touch()

    def _tell_closed(self, sequence: int) -> None:
        for stage in self._stages:
            try:
                self.context.tell(stage, CloseSequence(sequence))
            except RuntimeFault as fault:
                # A stage that cannot be reached is going down, and takes the sequence with it.
                logger.debug("{} is not told that sequence {} is closed: {}", stage, sequence, fault)

    def _fail(self, sequence: int, fault: RuntimeFault) -> None:
        self._tell_session(sequence, SequenceFailed(fault.code, fault.message))
        self._close(sequence, keep=False)

    def _fail_all(self, fault: RuntimeFault) -> None:
        """Fail every sequence and take no more; what the stages hold ends with them."""
        self._scheduler = None
        for sequence in list(self._sessions):
            self._fail(sequence, fault)

    def _tell_session(self, sequence: int, message: Message) -> None:
        session = self._sessions.get(sequence)
        if session is None:
            return
        try:
            self.context.tell(session, message)
        except RuntimeFault as fault:
            logger.debug("{} is not told of its sequence, which is closed: {}", session, fault)
            self._close(sequence)

    async def _watch_steps(self) -> None:
        """Notice a step that was lost between two actors, of which neither hears of it."""
        watch = StepWatch()
        while True:
            await asyncio.sleep(step_watch.LOOK_SECONDS)
            if self._scheduler is None:
                return
            oldest = self._scheduler.oldest
            if not watch.look(oldest):
                continue
            lost = watch.is_lost(await _all(map(self._steps_held, self._stages)))
            if lost and self._scheduler is not None and self._scheduler.oldest == oldest:
                nodes = ", ".join(stage.node for stage in self._stages)
                self._lose(
                    PeerUnreachable(
                        f"step {oldest} of {self._model} was lost between its stages on {nodes}; "
                        "ask again to place it anew"
                    )
                )
                return

    async def _steps_held(self, stage: ActorRef) -> StepsHeld | None:
        try:
            return await self.context.ask(stage, AskSteps(), step_watch.ANSWER_SECONDS)
        except RuntimeFault as fault:
            logger.debug("{} does not say which steps it has: {}", stage, fault)
            return None

    # -- going down -------------------------------------------------------------------------------------------------

    def _on_down(self, ref: ActorRef, reason: str) -> None:
        if ref in self._stages:
            what = f"node {ref.node} was lost" if reason == "noconnection" else f"a stage on {ref.node} ended"
            self._lose(PeerUnreachable(f"{what}, which held layers of {self._model}; ask again to place it anew"))
            return
        for sequence, session in list(self._sessions.items()):
            if session == ref:
                self._close(sequence)

    def _lose(self, fault: RuntimeFault) -> None:
        """End, because a stage is lost: whoever still wants the model has it placed anew."""
        if self._scheduler is None:
            return  # it is known already, as each sequence's step fails
        logger.error("{}", fault)
        self._fail_all(fault)
        self.context.stop_self()

    def _on_unload(self) -> None:
        self._lifetime.unloading.append(self.context.reply_later())
        self._touch()

    def _on_give_way(self, to: ActorRef) -> None:
        if self._lifetime.better is None:
            logger.info("{} is served by {} too: finishing what is begun here", self._model, to)
            self._lifetime.better = to
            self._touch()

    # -- what others see --------------------------------------------------------------------------------------------

    def _ready(self) -> Ready:
        assert self._placed is not None  # noqa: S101 - only called once placed
        self._lifetime.expect()
        return Ready(self.context.self_ref, self._placed.digest, self._placed.workload.context)

    def _announce(self) -> None:
        placed = self._placed
        if placed is None:
            return
        self._publish(
            ServedModel(
                model=self._model,
                digest=placed.digest,
                driver=self.context.self_ref,
                stages=tuple(ServedStage(stage.node, stage.span, stage.bytes) for stage in placed.plan.stages),
                context=placed.workload.context,
                expires=self._lifetime.expires,
                active=len(self._sessions),
                state=ServedState.UNLOADING if self._lifetime.is_leaving else ServedState.READY,
            )
        )


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all at once; the first failure is raised as itself rather than in a group."""
    return list(await asyncio.gather(*work))
