"""From a checkpoint and the live nodes to a plan: the ways to load it in turn, and what would help if none fits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from anyio import to_thread

from runtime.errors import PlacementRefused
from runtime.inference.options import candidate_chunks, candidate_contexts, candidate_options
from runtime.inference.remedies import Asked, what_would_help
from runtime.spi import (
    Checkpoint,
    LayerSeconds,
    LayerSpan,
    Link,
    LoadOptions,
    MemoryEstimate,
    MemoryEstimator,
    NodeView,
    Part,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    StagePlan,
    Workload,
)
from runtime.spi.memory import WEIGHTS

if TYPE_CHECKING:
    from runtime.config.load import ModelsSection

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class PlacingSettings(msgspec.Struct, frozen=True):
    """What the configuration says of how models are loaded."""

    context: int | None
    sequences: int
    prefill_chunk: int
    dtype: str
    dequantize: str

    @classmethod
    def of(cls, models: ModelsSection) -> PlacingSettings:
        """Take them from the section ``models`` of the configuration."""
        return cls(
            context=models.context,
            sequences=models.sequences,
            prefill_chunk=models.prefill_chunk,
            dtype=models.dtype,
            dequantize=str(models.dequantize).lower(),
        )


class Measures(msgspec.Struct, frozen=True):
    """What the nodes have measured; see :class:`~runtime.spi.PlacementRequest`."""

    seconds: Mapping[str, LayerSeconds] = {}
    links: Mapping[tuple[str, str], Link] = {}


Survey = Callable[[Checkpoint, LoadOptions, tuple[NodeView, ...]], Awaitable[Measures]]
"""Returns what is known of a model's speed on nodes, and of their links."""


class Planned(msgspec.Struct, frozen=True):
    """A plan, and what it was made for."""

    plan: Plan
    options: LoadOptions
    workload: Workload
    chunk: int
    """Prompt tokens of a forward pass that were asked for; the workload has fewer if memory is short."""
    request: PlacementRequest


class Planner:
    """Asks the placement policy for a plan, with the numbers of the memory estimator. Reserves and loads nothing."""

    def __init__(self, policy: PlacementPolicy, estimator: MemoryEstimator, settings: PlacingSettings) -> None:
        self._policy = policy
        self._estimator = estimator
        self.settings = settings

    async def plan(
        self,
        model: str,
        checkpoint: Checkpoint,
        nodes: tuple[NodeView, ...],
        survey: Survey,
        current: tuple[StagePlan, ...] = (),
        context: int | None = None,
        *,
        driver: str | None = None,
    ) -> Planned:
        """Try the preferred way to load the model, and after a refusal the next.

        Args:
            model: its name.
            checkpoint: its headers.
            nodes: those that can hold layers.
            survey: asked only for a policy that weighs what it finds.
            current: where the layers are, or were.
            context: instead of the configured one.
            driver: which node drives the model; None is the first of ``nodes``.

        Raises:
            PlacementRefused: nothing fits; with what would make the last way fit.
        """
        refused: tuple[PlacementRefused, Planned] | None = None
        for among, options in self._ways(checkpoint, nodes):
            measures = await survey(checkpoint, options, among) if self._policy.measures else Measures()
            for workload in self._workloads(checkpoint, context):
                tried = self._planned(
                    model, checkpoint, among, options, measures, current, workload, driver or nodes[0].name
                )
                try:
                    plan = await to_thread.run_sync(self._policy.plan, tried.request)
                except PlacementRefused as refusal:
                    refused = refusal, tried
                else:
                    return msgspec.structs.replace(tried, plan=_checked(plan, checkpoint.num_layers))
        if refused is None:
            raise PlacementRefused(f"{model} cannot be placed: no node is up and healthy")
        fault, tried = refused
        asked = Asked(
            tried.workload.context,
            tried.workload.sequences,
            _bits(checkpoint, tried.options),
            reserve=max(node.memory.reserve for node in tried.request.nodes),
        )
        remedy = await to_thread.run_sync(what_would_help, partial(self._fits, checkpoint, tried), asked)
        raise PlacementRefused(f"{fault.message}\n\n{remedy}") from fault

    def _ways(
        self, checkpoint: Checkpoint, nodes: tuple[NodeView, ...]
    ) -> Iterator[tuple[tuple[NodeView, ...], LoadOptions]]:
        """Yield nodes to choose among, and how they would load the model.

        All stages compute in one type, and the one that is fast on a CPU is not the one for a GPU. So nodes with a
        GPU are tried by themselves first: a further machine without one must not change how the others load it.
        """
        options = partial(candidate_options, checkpoint, dtype=self.settings.dtype, dequantize=self.settings.dequantize)
        with_gpu = tuple(node for node in nodes if node.backend != "cpu")
        if with_gpu:
            yield from ((with_gpu, each) for each in options(backend=with_gpu[0].backend))
        if nodes and len(with_gpu) < len(nodes):
            yield from ((nodes, each) for each in options(backend="cpu"))

    def _workloads(self, checkpoint: Checkpoint, context: int | None) -> Iterator[Workload]:
        """Yield what the model may be asked to do: the longest context with the longest chunks first.

        Chunks are shortened before contexts: that costs speed, and no text.
        """
        for length in candidate_contexts(checkpoint, context or self.settings.context):
            for chunk in candidate_chunks(self.settings.prefill_chunk, length):
                yield Workload(length, self.settings.sequences, chunk)

    def _planned(
        self,
        model: str,
        checkpoint: Checkpoint,
        nodes: tuple[NodeView, ...],
        options: LoadOptions,
        measures: Measures,
        current: tuple[StagePlan, ...],
        workload: Workload,
        driver: str,
    ) -> Planned:
        layers = checkpoint.num_layers
        request = PlacementRequest(
            model=model,
            layers=layers,
            nodes=nodes,
            estimate=lambda span: self._estimator.estimate(checkpoint, span, workload, options),
            driver=driver,
            seconds=measures.seconds,
            links=measures.links,
            hidden_bytes=hidden_size(checkpoint) * ITEM_BYTES[options.dtype],
            current=tuple(stage for stage in current if stage.span.total == layers),
        )
        chunk = min(self.settings.prefill_chunk, workload.context)
        return Planned(Plan((), ""), options, workload, chunk, request)

    def _fits(self, checkpoint: Checkpoint, tried: Planned, changed: Asked) -> bool:
        """Whether a plan that was refused would be made if something was asked differently."""
        chunk = min(tried.workload.prefill_chunk, changed.context)
        workload = Workload(changed.context, changed.sequences, chunk)

        def estimate(span: LayerSpan) -> MemoryEstimate:
            need = self._estimator.estimate(checkpoint, span, workload, tried.options)
            return MemoryEstimate(tuple(_shrunk(part, changed.weights) for part in need.parts))

        nodes = tuple(_keeping(node, changed.reserve) for node in tried.request.nodes)
        roomiest = max(nodes, key=lambda node: node.memory.grantable)
        more = (
            msgspec.structs.replace(roomiest, name=f"{roomiest.name}+{number}") for number in range(changed.more_nodes)
        )
        request = msgspec.structs.replace(tried.request, nodes=(*nodes, *more), estimate=estimate)
        try:
            self._policy.plan(request)
        except PlacementRefused:
            return False
        return True


def hidden_size(checkpoint: Checkpoint) -> int:
    """Return the width of the hidden states, 0 where the configuration does not say."""
    for key in ("hidden_size", "n_embd", "d_model", "dim"):
        value = checkpoint.text_config.get(key)
        if type(value) is int and value > 0:
            return value
    return 0


def _keeping(node: NodeView, most: int) -> NodeView:
    """Return the node with no more than ``most`` bytes kept free."""
    memory = msgspec.structs.replace(node.memory, reserve=min(node.memory.reserve, most))
    return msgspec.structs.replace(node, memory=memory)


def _shrunk(part: Part, share: float) -> Part:
    return Part(part.name, int(part.bytes * share)) if part.name == WEIGHTS else part


def _bits(checkpoint: Checkpoint, options: LoadOptions) -> float:
    """Return the bits that a weight takes, once loaded."""
    quantization = checkpoint.quantization
    bits = quantization.get("bits") if quantization is not None and not options.dequantize else None
    return float(bits) if isinstance(bits, int) else 8.0 * ITEM_BYTES[options.dtype]


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
