"""Whole inference nodes on loopback, within the test's own process: real actors, real sockets, tiny models."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load

from runtime.actors import Actor, ActorRef
from runtime.inference.borrowing import Borrower
from runtime.inference.catalogue import Catalogue
from runtime.inference.compute import ComputeThread
from runtime.inference.driver import Driver, DriverLimits
from runtime.inference.engine import RuntimeEngine
from runtime.inference.lending import FILES, Lender
from runtime.inference.models import MODELS, Models
from runtime.inference.placing import Placer
from runtime.inference.planning import PlacingSettings, Planner
from runtime.inference.probe_cache import Probes
from runtime.inference.progress import ProgressBoard
from runtime.inference.rivals import RIVALS, Rivals
from runtime.inference.session import Session
from runtime.inference.stage import STAGES, Stage, StageHost
from runtime.inference.survey import SURVEYOR, Surveyor, Surveys
from runtime.spi import (
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    LayerSpan,
    ModelFamily,
    ModelListing,
    ModelSource,
    NodeMemory,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    Progress,
    Sampling,
    StagePlan,
    Started,
    Telemetry,
    TelemetryEvent,
    Tokens,
)
from runtime_dense.family import DenseFamily
from runtime_even.policy import EvenPlacement
from runtime_memory.estimator import SafetensorsEstimator
from tests.cluster.nodes import ClusterNode, Seeds
from tests.wire.loopback import eventually

GREEDY = Sampling(temperature=0.0)
PROMPT = tuple(range(5, 40))
LONG = 400
"""Tokens of a generation that goes on while something else happens."""


class Folders(ModelSource):
    """Models by name, each in its folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    def claims(self, name: str) -> bool:
        return name in self.folders

    def local(self) -> list[ModelListing]:
        return [ModelListing(name, "folders", 1, 1.0, path) for name, path in self.folders.items()]

    def fetch(self, name: str, progress: Progress) -> Path:
        del progress
        return self.folders[name]


class Scripted(PlacementPolicy):
    """Returns what it is told to."""

    def __init__(self, plan: Callable[[PlacementRequest], Plan]) -> None:
        self._plan = plan

    def plan(self, request: PlacementRequest) -> Plan:
        return self._plan(request)


def plan_of(*spans: tuple[int, int], node: str = "a") -> Plan:
    """A plan that puts slices of a model of four layers on one node."""
    return Plan(tuple(StagePlan(node, LayerSpan(start, stop, 4), 1000) for start, stop in spans), "so it is")


class Events(Telemetry):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[TelemetryEvent] = []

    def emit(self, event: TelemetryEvent) -> None:
        self.events.append(event)


class InferenceNode(ClusterNode):
    """A cluster node that serves models."""

    def __init__(
        self,
        name: str,
        seeds: frozenset[str],
        folders: Mapping[str, Path],
        *,
        policy: PlacementPolicy | None = None,
        family: ModelFamily | None = None,
        limits: DriverLimits | None = None,
        context: int | None = 512,
        source: Callable[[str], ModelSource] | None = None,
        borrowed: Path | None = None,
        probes: Path | None = None,
    ) -> None:
        """Make it.

        Args:
            source: makes a node's source, instead of one with all the folders.
            borrowed: where nodes put what they take from each other; None if they share nothing.
        """
        super().__init__(name, Seeds(seeds))
        self.memory = NodeMemory(total=8 << 30, available=4 << 30)
        self.limits = limits or DriverLimits(sequences=4, waiting=4, prefix_cache=False, keep_alive=-1)
        self.compute = ComputeThread()
        self.board = ProgressBoard()
        self.source = Folders(folders)
        self.catalogue = Catalogue({"folders": self.source if source is None else source(name)})
        borrower = None if borrowed is None else Borrower(self.system, self._peers, borrowed / name)
        self.borrower = borrower
        self.telemetry = Events()
        self.policy = policy or EvenPlacement()
        self.sinks: tuple[Telemetry, ...] = (self.telemetry,)
        self.placer = Placer(
            self.system,
            self.catalogue,
            self.membership.views,
            Planner(
                self.policy,
                SafetensorsEstimator(),
                PlacingSettings(
                    context=context,
                    sequences=4,
                    prefill_chunk=16,
                    dtype="auto",
                    dequantize="auto",
                ),
            ),
            Surveys(self.system),
        )
        self.engine = RuntimeEngine(
            self.system, self.catalogue, self.compute, self.board, self.registry.entries, self.sinks, "tiny", borrower
        )
        families = {"dense": family or DenseFamily()}
        self.system.spawn(
            lambda: StageHost(self.catalogue, families, self.compute, self.board, self.sinks, borrower=borrower),
            STAGES,
        )
        if borrower is not None:
            self.system.spawn(lambda: Lender(self.catalogue), FILES)
        if probes is not None:
            known = Probes(families, probes)
            self.system.spawn(lambda: Surveyor(known, self.compute, self._round_trip), SURVEYOR)
        self.system.spawn(lambda: Rivals(self.registry), RIVALS)
        self.system.spawn(lambda: Models(self._driver, self._served_by, self._peers), MODELS)

    def _driver(self, model: str) -> Driver:
        return Driver(
            model,
            self.placer,
            self.limits,
            self.board,
            self.registry.publish,
            lambda m, d: self.registry.withdraw(m, d),
        )

    def _served_by(self, model: str) -> ActorRef | None:
        entry = self.registry.lookup(model)
        return entry.driver if entry else None

    def _round_trip(self, peer: str) -> float | None:
        info = self.membership.member(peer)
        return None if info is None else info.rtt

    def _peers(self) -> list[str]:
        return [view.name for view in self.membership.views() if view.name != self.name]

    # -- what is inside ----------------------------------------------------------------------------------------------

    def drivers(self) -> list[Driver]:
        """The drivers that live here."""
        return list(self._actors(Driver))

    def stages(self) -> list[Stage]:
        """The stages that live here."""
        return list(self._actors(Stage))

    def sessions(self) -> list[Session]:
        """The sessions that live here."""
        return list(self._actors(Session))

    def sequences(self) -> int:
        """Sequences that anything here still holds: stages, drivers, sessions."""
        return (
            sum(len(stage._sequences) for stage in self.stages())
            + sum(len(driver._sessions) + len(driver._submits) for driver in self.drivers())
            + len(self.sessions())
        )

    def _actors(self, kind: type[Any]) -> Iterator[Any]:
        """Look into the cells: no message tells what an actor has forgotten."""
        for cell in list(self.system._cells.values()):
            for referrer in (cell._task.get_coro(),):
                actor = _actor_of(referrer)
                if isinstance(actor, kind):
                    yield actor

    async def stop(self) -> None:
        await super().stop()
        assert self.compute.close(10)


def _actor_of(coroutine: Any) -> Actor | None:
    """Return the actor whose life a cell's coroutine is running."""
    while coroutine is not None and getattr(coroutine, "cr_frame", None) is not None:
        actor = coroutine.cr_frame.f_locals.get("actor")
        if isinstance(actor, Actor):
            return actor
        coroutine = coroutine.cr_await
    return None


@asynccontextmanager
async def serving(*names: str, folders: Mapping[str, Path], **settings: Any) -> AsyncIterator[list[InferenceNode]]:
    """Nodes that see each other, each with all the models."""
    made: list[InferenceNode] = []
    try:
        for name in names:
            seeds = frozenset({made[0].address}) if made else frozenset[str]()
            node = InferenceNode(name, seeds, folders, **settings)
            made.append(node)
            if len(names) > 1:
                await node.network.listen("127.0.0.1", 0)
        await eventually(lambda: all(len(node.membership.views()) == len(names) for node in made))
        yield made
    finally:
        for node in made:
            await node.stop()


def request(model: str = "tiny", prompt: tuple[int, ...] = PROMPT, **settings: Any) -> GenerationRequest:
    """A greedy generation that shows its tokens and does not end by itself."""
    fixed: dict[str, Any] = {"sampling": GREEDY, "logprobs": 0, "ignore_eos": True, "max_tokens": 16}
    return GenerationRequest(model, Tokens(prompt), **{**fixed, **settings})


async def events(node: InferenceNode, order: GenerationRequest) -> list[GenerationEvent]:
    """Run a generation to its end."""
    return [event async for event in node.engine.generate(order)]


async def tokens(node: InferenceNode, order: GenerationRequest) -> list[int]:
    """Run a generation, and return its tokens."""
    heard = await events(node, order)
    assert isinstance(heard[0], Started)
    assert isinstance(heard[-1], Finished)
    return [token.token.id for event in heard if isinstance(event, Delta) for token in event.tokens]


@asynccontextmanager
async def begun(node: InferenceNode, order: GenerationRequest) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
    """A generation that has given its first text and goes on."""
    stream = node.engine.generate(order)
    async with contextlib.aclosing(stream):
        async for event in stream:
            if isinstance(event, Delta):
                break
        yield stream


def reference(folder: Path, prompt: tuple[int, ...], count: int, chunk: int = 16) -> list[int]:
    """What mlx-lm generates, greedily and in float32."""
    model: Any = load(str(folder))[0]
    model.set_dtype(mx.float32)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=chunk)
    return [int(token) for token, _ in steps]
