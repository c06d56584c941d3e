"""From a model's name to loaded stages: plan, reserve on every node, load everywhere."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec
from loguru import logger

from runtime.actors import ActorRef, ActorSystem
from runtime.cluster import LEDGER, Commit
from runtime.errors import PlacementRefused
from runtime.inference.catalogue import Catalogue
from runtime.inference.options import candidate_contexts, candidate_options
from runtime.inference.protocol import OpenStage, StageOpened
from runtime.inference.reserving import RESERVE_SECONDS, reserve
from runtime.inference.stage import LOAD_SECONDS, STAGES
from runtime.spi import (
    Checkpoint,
    LoadOptions,
    MemoryEstimator,
    NodeView,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    Progress,
    Workload,
)


class PlacingSettings(msgspec.Struct, frozen=True):
    """What the configuration says of how models are loaded."""

    context: int | None
    sequences: int
    prefill_chunk: int
    dtype: str
    dequantize: str


class Placed(msgspec.Struct, frozen=True):
    """A model that is loaded."""

    digest: str
    context: int
    options: LoadOptions
    plan: Plan
    stages: tuple[ActorRef, ...]


class Placer:
    """Places models for the drivers of this node. ``nodes`` returns the live ones, this one first."""

    def __init__(
        self,
        system: ActorSystem,
        catalogue: Catalogue,
        nodes: Callable[[], tuple[NodeView, ...]],
        policy: PlacementPolicy,
        estimator: MemoryEstimator,
        settings: PlacingSettings,
    ) -> None:
        self._system = system
        self._catalogue = catalogue
        self._nodes = nodes
        self._policy = policy
        self._estimator = estimator
        self._settings = settings
        self._epochs = itertools.count(1)

    async def place(self, model: str, driver: ActorRef, progress: Progress) -> Placed:
        """Fetch, plan, reserve and load a model. What was reserved or loaded when it fails ends with the driver.

        Raises:
            ModelNotFound, ModelError: the model cannot be had or used.
            PlacementRefused: it fits nowhere.
        """
        checkpoint = (await self._catalogue.open(model, progress)).checkpoint
        plan, context, options = self._plan(model, checkpoint, self._nodes())
        logger.info("placing {}: {}", model, plan.reason)
        reserved = await reserve(self._system, plan, model, next(self._epochs), driver)
        opened = await asyncio.gather(
            *(
                self._open(OpenStage(model, checkpoint.digest, stage.span, options, driver, grant), stage.node)
                for stage, grant in zip(plan.stages, reserved, strict=True)
            )
        )
        return Placed(checkpoint.digest, context, options, plan, tuple(stage.stage for stage in opened))

    async def _open(self, order: OpenStage, node: str) -> StageOpened:
        opened = await self._system.ask(ActorRef(node, f"/{STAGES}"), order, LOAD_SECONDS)
        await self._system.ask(ActorRef(node, LEDGER), Commit(order.reservation), RESERVE_SECONDS)
        return opened

    def _plan(self, model: str, checkpoint: Checkpoint, nodes: tuple[NodeView, ...]) -> tuple[Plan, int, LoadOptions]:
        """Ask the policy for the preferred way to load; when it refuses, for the next one."""
        settings = self._settings
        layers = checkpoint.num_layers
        backend = "cpu" if any(node.backend == "cpu" for node in nodes) else nodes[0].backend
        refusal: PlacementRefused | None = None
        for options in candidate_options(
            checkpoint, backend=backend, dtype=settings.dtype, dequantize=settings.dequantize
        ):
            for context in candidate_contexts(checkpoint, settings.context):
                workload = Workload(context, settings.sequences, min(settings.prefill_chunk, context))
                request = PlacementRequest(
                    model=model,
                    layers=layers,
                    nodes=nodes,
                    estimate=lambda span, w=workload, o=options: self._estimator.estimate(checkpoint, span, w, o),  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                )
                try:
                    return self._checked(self._policy.plan(request), layers), context, options
                except PlacementRefused as fault:
                    refusal = fault
        raise refusal or PlacementRefused(f"no node can hold {model}")

    @staticmethod
    def _checked(plan: Plan, layers: int) -> Plan:
        """Refuse a policy's plan that does not cover every layer once: better here than as wrong text later."""
        expected = 0
        for stage in plan.stages:
            if stage.span.start != expected or stage.span.total != layers:
                break
            expected = stage.span.stop
        if expected != layers:
            spans = ", ".join(str(stage.span) for stage in plan.stages)
            raise PlacementRefused(f"the placement policy returned stages that are not the {layers} layers: {spans}")
        return plan
