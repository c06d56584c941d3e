"""A stage: the actor around one slice of a model, and the actor that opens stages on a node."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from loguru import logger

from runtime.actors import Actor, ActorRef, Down, Message, ReplyTo, Request, Restart
from runtime.cluster import LEDGER, Confirm
from runtime.errors import ActorStopped, ModelError, ModelNotFound, RuntimeFault
from runtime.inference.accelerator import prepare
from runtime.inference.borrowing import Borrower, PeerReader, open_same
from runtime.inference.catalogue import Catalogue
from runtime.inference.compute import ComputeThread
from runtime.inference.failure import as_fault
from runtime.inference.progress import ProgressBoard
from runtime.inference.protocol import (
    AskSteps,
    CloseSequence,
    ConnectStage,
    Done,
    Hidden,
    LoadProgress,
    OpenSequence,
    OpenStage,
    Row,
    StageOpened,
    Step,
    StepFailed,
    StepsHeld,
    sequences_of,
)
from runtime.inference.reclaim import reclaim
from runtime.inference.step_times import FIRST, Bounded, StepTimes, estimate, longest_read
from runtime.inference.telemetry import emit_all
from runtime.spi import (
    Checkpoint,
    Download,
    LayerSpan,
    ModelFamily,
    ModelFiles,
    ModelLoaded,
    ModelUnloaded,
    Progress,
    Telemetry,
)

if TYPE_CHECKING:
    from runtime.inference.microbatch import StageSequence
    from runtime.inference.sequence import Result, StageSequences
    from runtime.inference.shard import Shard

STAGES = "stages"
"""Path of every node's :class:`StageHost`."""
LOAD_SECONDS = 3600.0
"""How long fetching and loading a slice may take."""
CONFIRM_SECONDS = 10.0
"""How long the node's own ledger may take to answer."""


class _Load(Request[StageOpened], frozen=True, tag="stage.load"):
    """Load the slice that the stage was made for."""


class StageHost(Actor):
    """Opens stages on its node: finds the model's files, checks that they are the driver's, and loads the slice."""

    def __init__(
        self,
        catalogue: Catalogue,
        families: Mapping[str, ModelFamily],
        compute: ComputeThread,
        board: ProgressBoard,
        telemetry: tuple[Telemetry, ...],
        pausing: Callable[[], AbstractContextManager[None]] = nullcontext,
        borrower: Borrower | None = None,
    ) -> None:
        """Make it.

        Args:
            pausing: makes the context in which a slice is loaded: the node may be silent meanwhile.
            borrower: takes files from other nodes; None where nodes share none.
        """
        self._borrower = borrower
        self._pausing = pausing
        self._catalogue = catalogue
        self._families = families
        self._compute = compute
        self._board = board
        self._telemetry = telemetry
        self._names = itertools.count(1)

    async def receive(self, message: Message) -> Message | None:
        """Open a stage; the answer comes when it is loaded."""
        match message:
            case OpenStage():
                reply = self.context.reply_later()
                self.context.start_task(self._open(message, reply), f"open {message.model}", reply)
        return None

    async def _open(self, order: OpenStage, reply: ReplyTo) -> None:
        stage: ActorRef | None = None
        try:
            checkpoint = await self._fetch(order)
            # The plan may be an hour old, if there was much to fetch, and other programs ask no ledger.
            await self.context.ask(ActorRef(self.context.node, LEDGER), Confirm(order.reservation), CONFIRM_SECONDS)
            stage = self.context.spawn(
                lambda: Stage(order, checkpoint, self._families, self._compute, self._reporter(order), self._telemetry),
                f"{next(self._names)}",
                Restart.TEMPORARY,
            )
            with self._pausing():
                opened = await self.context.ask(stage, _Load(), LOAD_SECONDS)
            reply.answer(opened)
        except BaseException as error:  # a failure here must not take down the node's other stages
            if stage is not None:
                self.context.stop(stage)
            if not isinstance(error, Exception):
                raise  # the driver waits no longer
            reply.fail(as_fault(error, f"opening {order.model} on {self.context.node}"))

    async def _fetch(self, order: OpenStage) -> Checkpoint:
        """Fetch what the slice needs, once a family has said that it runs the model."""
        files = await self._open_files(order)
        checkpoint = files.checkpoint
        with self._pausing():
            needed = await self._compute.run(lambda: self._needed(checkpoint, order.span))
        lacking = needed & checkpoint.absent
        lender: PeerReader | None = None
        if lacking and self._borrower is not None:
            lender = await self._borrower.lender(order.model, order.digest)
            if not lender.has_any(checkpoint.tensors[name] for name in lacking):
                lender = None
        # Also if nothing is lacking: what another process fetched is compared with its CRC here, before it is loaded.
        return await self._catalogue.fill(files, needed, self._reporter(order), lender)

    def _needed(self, checkpoint: Checkpoint, span: LayerSpan) -> frozenset[str]:
        """Name the tensors that the slice reads. Runs on the compute thread: families may import MLX."""
        prepare()
        from runtime.inference.loading import choose_family

        return choose_family(self._families, checkpoint).tensors(checkpoint, span)

    async def _open_files(self, order: OpenStage) -> ModelFiles:
        try:
            return await open_same(
                self._catalogue,
                self._borrower,
                order.model,
                order.digest,
                self._reporter(order),
                node=self.context.node,
                driver=order.driver.node,
            )
        except ModelNotFound as fault:
            # Not what the client is to be told: the model is there, on the driver's node.
            raise ModelError(
                f"node {self.context.node} is to hold layers {order.span} of {order.model} and does not find it "
                f"({fault.message}); give every node the same models"
            ) from fault

    def _reporter(self, order: OpenStage) -> Progress:
        return self._board.throttled(lambda progress: self._report(order, progress))

    def _report(self, order: OpenStage, progress: Download) -> None:
        """Pass progress to the driver's node, where somebody may be watching."""
        try:
            self.context.tell(
                order.driver,
                LoadProgress(order.model, self.context.node, progress.step, progress.done, progress.total),
            )
        except RuntimeFault as fault:
            logger.debug("progress of {} is not reported: {}", order.model, fault)


class Stage(Actor):
    """Runs steps over its slice and passes them on. It lives as long as its driver.

    Steps go to the compute thread in the order they arrive; nothing here waits for a result. How many are on their
    way at once is the driver's decision.
    """

    capacity = 8192

    def __init__(
        self,
        order: OpenStage,
        checkpoint: Checkpoint,
        families: Mapping[str, ModelFamily],
        compute: ComputeThread,
        progress: Progress,
        telemetry: tuple[Telemetry, ...],
    ) -> None:
        self._order = order
        self._checkpoint = checkpoint
        self._families = families
        self._compute = compute
        self._progress = progress
        self._telemetry = telemetry
        self._times: StepTimes | None = None
        self._shard: Shard | None = None
        self._next: ActorRef | None = None
        self._sequences: dict[int, StageSequence] = {}
        self._taken = 0
        """Number of the last step that came."""
        self._held: set[int] = set()
        """Numbers of those that are on the compute thread, or wait for it."""
        self._work: StageSequences | None = None
        self._began = False
        """Whether loading began, so that there is memory to give back."""
        self._abandoned = False
        """Whether a load that is still running should end; the compute thread reads it."""

    async def started(self) -> None:
        """Watch the driver: without it nobody will ever close this stage."""
        self.context.monitor(self._order.driver)

    async def receive(self, message: Message) -> Message | None:
        """Take a step, or prepare for some."""
        match message:
            case Step() | Hidden():
                self._start(message)
            case OpenSequence():
                return self._open_sequence(message)
            case CloseSequence(sequence):
                self._sequences.pop(sequence, None)  # a step tells what to drop of it
            case AskSteps():
                return StepsHeld(self._taken, tuple(self._held))
            case ConnectStage(next):
                self._next = next
                if next is not None:
                    # The driver may see both while what was on its way from here to there is lost with their link.
                    self.context.monitor(next)
                return Done()
            case _Load():
                # Beside the mailbox, so that the loss of the driver is seen, and ends a load that may take long.
                reply = self.context.reply_later()
                self.context.start_task(self._load(reply), "load", reply)
            case Down():
                self.context.stop_self()
        return None

    async def stopped(self) -> None:
        """Free the slice, or what there is of it."""
        self._sequences.clear()
        if not self._began:
            return
        loaded = self._shard is not None
        self._abandoned, self._shard, self._work = True, None, None
        await self._compute.settle()
        await self._compute.run(reclaim, outlasts=True)
        if not loaded:
            logger.info("gave up loading layers {} of {}", self._order.span, self._order.model)
            return
        emit_all(self._telemetry, ModelUnloaded(self._order.model, len(self._order.span)))
        logger.info("unloaded layers {} of {}", self._order.span, self._order.model)

    async def _load(self, reply: ReplyTo) -> None:
        order = self._order
        start = self.context.now()
        self._began = True
        try:
            shard, self._work, alone, trims = await self._compute.run(self._make_shard, expected=self._expected_load())
        except Exception as error:  # noqa: BLE001 - a plugin's failure is the asker's to hear, with its reason
            reply.fail(as_fault(error, f"loading layers {order.span} of {order.model} on {self.context.node}"))
            self.context.stop_self()
            return
        self._shard, size = shard, shard.nbytes
        self._times = StepTimes(self._compute.patience, estimate(size, order.span, order.seconds))
        seconds = self.context.now() - start
        emit_all(self._telemetry, ModelLoaded(order.model, len(order.span), size, seconds))
        logger.info("loaded layers {} of {}: {:.0f} MB in {:.1f} s", order.span, order.model, size / 1e6, seconds)
        reply.answer(StageOpened(self.context.self_ref, size, seconds, alone, trims))

    def _expected_load(self) -> Bounded:
        """Return how long loading may be without progress, which is told after each module."""
        order, tensors = self._order, self._checkpoint.tensors
        largest = max((tensor.nbytes for tensor in tensors.values()), default=0)
        slow = longest_read(self._checkpoint.nbytes, largest, order.span.total)
        return Bounded(f"loading layers {order.span} of {order.model}", max(FIRST * self._compute.patience, slow))

    def _make_shard(self) -> tuple[Shard, StageSequences, str | None, bool]:
        """Load the slice, and find out why the model takes one sequence at a time, if so. On the compute thread."""
        # Whatever imports MLX is imported here: see runtime.inference.accelerator.
        prepare()
        from runtime.inference.batchable import reason_against
        from runtime.inference.loading import choose_family, load_shard
        from runtime.inference.sequence import StageSequences

        order = self._order

        def report(done: int, total: int) -> None:
            if self._abandoned:
                raise ActorStopped(f"{self.context.self_ref} was stopped while it was loading")
            self._compute.got_on()
            self._progress(Download(order.model, "loading", done, total))

        shard = load_shard(self._families, self._checkpoint, order.span, order.options, report)
        family = choose_family(self._families, self._checkpoint)
        alone = reason_against(family, self._checkpoint) if order.span.is_first else None
        return shard, StageSequences(shard, self._sequences), alone, shard.trims

    def _open_sequence(self, message: OpenSequence) -> Done:
        from runtime.inference.microbatch import StageSequence

        if self._shard is None:
            raise ModelError(f"{self.context.self_ref} has no model loaded")
        self._sequences[message.sequence] = StageSequence(message)
        return Done()

    def _start(self, step: Step | Hidden) -> None:
        work, times = self._work, self._times
        if work is None or times is None:
            raise ModelError(f"{self.context.self_ref} has no model loaded")
        compute = self._compute
        self._taken = step.number
        self._held.add(step.number)
        compute.submit(
            lambda: work.step(step, launch=not compute.computing),
            lambda result, error: self._finish(step, result, error),
            times.expected(_tokens(step)),
        )

    def _finish(self, step: Step | Hidden, result: Result | None, error: BaseException | None) -> None:
        self._held.discard(step.number)
        try:
            self._pass_on(result, error)
        except Exception as failure:  # noqa: BLE001 - whatever broke this step must not break the other sequences
            for sequence in sequences_of(step):
                self._sequences.pop(sequence, None)
            if not isinstance(failure, RuntimeFault):
                logger.opt(exception=failure).error("a step over layers {} failed", self._order.span)
            self._fail(step.number, failure)

    def _pass_on(self, result: Result | None, error: BaseException | None) -> None:
        target = self._next if isinstance(result, Hidden) else self._order.driver
        if result is None or target is None:
            raise error or ModelError(f"layers {self._order.span} have no next stage")
        self.context.tell(target, result)

    def _fail(self, number: int, failure: Exception) -> None:
        text = f"{self.context.node}: {str(failure) or repr(failure)}"
        code = failure.code if isinstance(failure, RuntimeFault) else RuntimeFault.code
        try:
            self.context.tell(self._order.driver, StepFailed(number, text, code))
        except RuntimeFault as fault:
            logger.debug("the driver of {} is not told of a failed step: {}", self._order.model, fault)


def _tokens(step: Step | Hidden) -> int:
    """Return over how many tokens a step goes, those included that shorter rows are padded with."""
    lengths = [len(row.tokens or (None,)) if isinstance(row, Row) else row[2] for row in step.rows]
    return len(lengths) * max(lengths, default=0)
