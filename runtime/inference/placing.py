"""From a model's name to loaded stages: plan, reserve on every node, load everywhere."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec
from loguru import logger

from runtime.actors import ActorRef, ActorSystem
from runtime.cluster import LEDGER, Commit
from runtime.inference.capacity import whole_steps
from runtime.inference.catalogue import Catalogue
from runtime.inference.planning import Planned, Planner, Survey
from runtime.inference.protocol import OpenStage, StageOpened
from runtime.inference.reserving import RESERVE_SECONDS, reserve
from runtime.inference.stage import LOAD_SECONDS, STAGES
from runtime.spi import Checkpoint, LoadOptions, NodeView, Plan, Progress, Workload


class Placed(msgspec.Struct, frozen=True):
    """A model that is loaded."""

    digest: str
    workload: Workload
    options: LoadOptions
    plan: Plan
    stages: tuple[ActorRef, ...]
    positions: int
    """Of the KV cache that is reserved, for all sequences."""
    alone: str | None
    """Why the model takes one sequence at a time, if it does."""
    trims: bool
    """Whether the caches of all layers can be cut to any shorter length."""


class Placer:
    """Places models for the drivers of this node. ``nodes`` returns those that can hold layers."""

    def __init__(
        self,
        system: ActorSystem,
        catalogue: Catalogue,
        nodes: Callable[[], tuple[NodeView, ...]],
        planner: Planner,
        survey: Survey,
    ) -> None:
        self._system = system
        self._catalogue = catalogue
        self._nodes = nodes
        self._planner = planner
        self._survey = survey
        self._epochs = itertools.count(1)
        self._last: dict[str, Plan] = {}
        """Where models were placed: their files are there."""

    async def plan(self, model: str, progress: Progress, context: int | None = None) -> Planned:
        """Plan a model as it would be placed now, and do nothing with the plan; ``context`` is instead of the
        configured one.

        Raises:
            ModelNotFound, ModelError: the model cannot be had or used.
            PlacementRefused: it fits nowhere.
        """
        return await self._plan(model, (await self._catalogue.open(model, progress)).checkpoint, context)

    async def _plan(self, model: str, checkpoint: Checkpoint, context: int | None = None) -> Planned:
        last = self._last.get(model)
        current = () if last is None else last.stages
        return await self._planner.plan(
            model, checkpoint, self._nodes(), self._survey, current, context, driver=self._system.node
        )

    async def place(self, model: str, driver: ActorRef, progress: Progress) -> Placed:
        """Fetch, plan, reserve and load a model. What was reserved or loaded when it fails ends with the driver.

        Raises:
            ModelNotFound, ModelError: the model cannot be had or used.
            PlacementRefused: it fits nowhere.
        """
        checkpoint = (await self._catalogue.open(model, progress)).checkpoint
        planned = await self._plan(model, checkpoint)
        plan, options = planned.plan, planned.options
        logger.info("placing {}: {}", model, plan.reason)
        reserved = await reserve(self._system, plan, model, next(self._epochs), driver)
        measured = planned.request.seconds
        opened = await asyncio.gather(
            *(
                self._open(
                    OpenStage(model, checkpoint.digest, stage.span, options, driver, grant, measured.get(stage.node)),
                    stage.node,
                )
                for stage, grant in zip(plan.stages, reserved, strict=True)
            )
        )
        self._last[model] = plan
        workload = planned.workload
        return Placed(
            digest=checkpoint.digest,
            workload=workload,
            options=options,
            plan=plan,
            stages=tuple(stage.stage for stage in opened),
            positions=whole_steps(workload.context) * workload.sequences,
            alone=opened[0].alone,
            trims=all(stage.trims for stage in opened),
        )

    async def _open(self, order: OpenStage, node: str) -> StageOpened:
        opened = await self._system.ask(ActorRef(node, f"/{STAGES}"), order, LOAD_SECONDS)
        await self._system.ask(ActorRef(node, LEDGER), Commit(order.reservation), RESERVE_SECONDS)
        return opened
