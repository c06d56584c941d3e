"""The ways in which a model is tried to be placed, and what is said when none works."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import PlacementRefused
from runtime.inference import remedies
from runtime.inference.planning import Measures, PlacingSettings, Planned, Planner
from runtime.inference.remedies import CONTEXT_STEP, Asked, what_would_help
from runtime.spi import (
    Checkpoint,
    LayerSpan,
    LoadOptions,
    MemoryEstimate,
    MemoryEstimator,
    NodeMemory,
    NodeView,
    Part,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    StagePlan,
    Workload,
    read_checkpoint,
)
from runtime.spi.memory import KV_CACHE, WEIGHTS
from runtime.testing.models import tiny_llama
from runtime_even.policy import EvenPlacement
from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings

MIB = 1 << 20


class PerLayer(MemoryEstimator):
    """A layer has 32 MiB of float32 weights, and 1 MiB of cache for each 1024 tokens of a sequence; and a chunk of 512
    tokens takes as much as ``chunk`` says."""

    def __init__(self, chunk: int = 0) -> None:
        self._chunk = chunk

    def estimate(
        self, checkpoint: Checkpoint, span: LayerSpan, workload: Workload, options: LoadOptions
    ) -> MemoryEstimate:
        weights = 32 * MIB if options.dtype == "float32" else 16 * MIB
        cache = MIB * workload.context * workload.sequences // 1024
        activations = self._chunk * workload.prefill_chunk // 512
        return MemoryEstimate(
            (Part(WEIGHTS, len(span) * weights), Part(KV_CACHE, len(span) * cache), Part("working memory", activations))
        )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny", layers=8, context=8192))


def a_node(name: str, mebibytes: int, backend: str = "cpu") -> NodeView:
    memory = NodeMemory(total=mebibytes * MIB, available=mebibytes * MIB)
    return NodeView(name, memory, backend, ("dense",))


async def planned(
    checkpoint: Checkpoint,
    *nodes: NodeView,
    policy: PlacementPolicy | None = None,
    context: int | None = None,
    sequences: int = 1,
    estimator: MemoryEstimator | None = None,
) -> Planned:
    settings = PlacingSettings(context=context, sequences=sequences, prefill_chunk=512, dtype="auto", dequantize="auto")
    planner = Planner(policy or EvenPlacement(), estimator or PerLayer(), settings)
    return await planner.plan("m", checkpoint, nodes, nothing)


async def nothing(checkpoint: Checkpoint, options: LoadOptions, nodes: tuple[NodeView, ...]) -> Measures:
    return Measures()


async def test_the_longest_context_that_fits_is_planned(checkpoint: Checkpoint) -> None:
    assert (await planned(checkpoint, a_node("a", 8 * 40))).workload.context == 8192
    assert (await planned(checkpoint, a_node("a", 8 * 37))).workload.context == 4096
    assert (await planned(checkpoint, a_node("a", 8 * 34))).workload.context == 2048


@pytest.mark.parametrize(
    ("spare", "chunk", "context"), [(64, 512, 8192), (63, 128, 8192), (16, 128, 8192), (15, 128, 4096)]
)
async def test_chunks_of_prompts_are_shortened_before_the_context_is(
    spare: int, chunk: int, context: int, checkpoint: Checkpoint
) -> None:
    found = await planned(checkpoint, a_node("a", 8 * 40 + spare), estimator=PerLayer(64 * MIB))
    assert found.workload == Workload(context, 1, chunk)


@pytest.mark.parametrize("policy", [EvenPlacement(), MinmaxPlacement(MinmaxSettings())], ids=["even", "minmax"])
async def test_a_further_machine_without_a_gpu_does_not_change_how_the_others_load(
    checkpoint: Checkpoint, policy: PlacementPolicy
) -> None:
    gpus = (a_node("a", 300, "metal"), a_node("b", 300, "metal"))
    alone = await planned(checkpoint, *gpus, policy=policy)
    beside = await planned(checkpoint, *gpus, a_node("c", 9000), policy=policy)
    assert beside.options == alone.options == LoadOptions("bfloat16", dequantize=False)
    assert beside.plan == alone.plan
    # The driver may be the one that is left out.
    asked_there = await planned(checkpoint, a_node("c", 9000), *gpus, policy=policy)
    assert asked_there.request.driver == "c"
    assert {stage.node for stage in asked_there.plan.stages} <= {"a", "b"}


async def test_machines_without_a_gpu_help_where_those_with_one_are_too_few(checkpoint: Checkpoint) -> None:
    found = await planned(
        checkpoint, a_node("gpu", 10, "metal"), a_node("cpu", 900), policy=MinmaxPlacement(MinmaxSettings())
    )
    assert [stage.node for stage in found.plan.stages] == ["cpu"]
    assert found.options.dtype == "float32"


async def test_a_refusal_has_the_policys_tables_and_the_smallest_changes_that_are_enough(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(PlacementRefused) as refusal:
        await planned(checkpoint, a_node("a", 8 * 34 - 1), context=2048, sequences=2)
    text = refusal.value.message
    assert "m does not fit: a lacks memory" in text
    assert text.splitlines()[-1] == (
        "What would help: 1 more node(s) like the one with the most memory; or a context of 768 tokens instead of "
        "2048; or the model quantized to 8 bits instead of 32."
    )


async def test_what_is_said_to_help_does(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlacementRefused, match="a context of 1024 tokens instead of 2048"):
        await planned(checkpoint, a_node("a", 8 * 33), context=2048)
    assert (await planned(checkpoint, a_node("a", 8 * 33), context=1024)).plan.stages
    with pytest.raises(PlacementRefused, match="1024 tokens"):
        await planned(checkpoint, a_node("a", 8 * 33), context=1280)


async def test_where_nothing_is_enough_by_itself_that_is_said(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlacementRefused, match="Not enough by itself"):
        await planned(checkpoint, a_node("a", 1))


async def test_no_node_at_all_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlacementRefused, match="no node is up"):
        await planned(checkpoint)


class Careless(PlacementPolicy):
    """Forgets the last layer."""

    def plan(self, request: PlacementRequest) -> Plan:
        return Plan((StagePlan("a", LayerSpan(0, request.layers - 1, request.layers), 0),), "because")


async def test_a_plan_that_is_not_every_layer_once_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PlacementRefused, match="are not the 8 layers: 0-6 of 8"):
        await planned(checkpoint, a_node("a", 900), policy=Careless())


# -- what would help --------------------------------------------------------------------------------------------------


@given(context=st.integers(1, 9000), sequences=st.integers(1, 9), budget=st.integers(0, 60000))
def test_a_remedy_is_the_largest_that_is_enough(context: int, sequences: int, budget: int) -> None:
    def fits(asked: Asked) -> bool:
        return asked.context * asked.sequences <= budget and asked.more_nodes == 0 and asked.weights == 1

    text = what_would_help(fits, Asked(context, sequences, 16.0))
    shorter = (min(budget // sequences, context - 1)) // CONTEXT_STEP * CONTEXT_STEP
    fewer = min(budget // context, sequences - 1)
    assert (f"a context of {shorter} tokens instead of {context}" in text) == (shorter > 0)
    assert (f"{fewer} sequence(s) at once instead of {sequences}" in text) == (fewer > 0)
    if shorter > 0 and fewer > 0:
        first = "context" if context / shorter <= sequences / fewer else "sequence(s)"
        assert text.removeprefix("What would help: ").split("; or ")[0].count(first) == 1
    if shorter <= 0 and fewer <= 0:
        assert "Not enough by itself" in text


def test_weights_are_shrunk_no_further_than_needed_and_never_enlarged() -> None:
    asked = Asked(256, 1, 16.0)
    assert "quantized to 8 bits instead of 16" in what_would_help(lambda each: each.weights < 0.6, asked)
    assert "quantized to 4 bits instead of 16" in what_would_help(lambda each: each.weights < 0.5, asked)
    assert "quantized" not in what_would_help(lambda each: each.weights < 0.99, asked._replace(bits=4.0))


def test_as_few_more_nodes_as_are_enough_are_named() -> None:
    assert "3 more node(s)" in what_would_help(lambda each: each.more_nodes >= 3, Asked(256, 1, 16.0))


def test_keeping_less_free_is_said_last_and_no_less_than_is_enough() -> None:
    asked = Asked(1024, 1, 16.0, reserve=900 * MIB)
    text = what_would_help(lambda each: each.reserve <= 300 * MIB or each.context <= 256, asked)
    assert text == (
        "What would help: a context of 256 tokens instead of 1024; or a models.memory_reserve of at most 300 MiB where "
        "it lacks."
    )


def test_all_that_was_tried_and_is_not_enough_is_said() -> None:
    assert what_would_help(lambda each: False, Asked(1024, 4, 16.0, reserve=900 * MIB)) == (
        "What would help: a smaller model, or more memory. Not enough by itself: less context, a single sequence, "
        "8 more node(s) of this size, 4 bit weights, a models.memory_reserve of 0."
    )
    assert what_would_help(lambda each: False, Asked(256, 1, 4.0)) == (
        "What would help: a smaller model, or more memory. Not enough by itself: 8 more node(s) of this size."
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (6.0, " Not enough by itself: less context."),
        (2.0, " Not enough by itself: less context, a single sequence, 1 more node(s) of this size."),
        (0.0, ""),
    ],
)
def test_a_search_that_is_cut_short_claims_only_what_it_tried(
    monkeypatch: pytest.MonkeyPatch, seconds: float, said: str
) -> None:
    now = 0.0

    def slow(each: Asked) -> bool:
        nonlocal now
        now += seconds
        return False

    monkeypatch.setattr(time, "monotonic", lambda: now)
    if not seconds:
        monkeypatch.setattr(remedies, "SEARCH_SECONDS", 0.0)
    text = what_would_help(slow, Asked(1024, 4, 16.0))
    assert text == (
        f"What would help: a smaller model, or more memory.{said} The search was cut short after "
        f"{remedies.SEARCH_SECONDS:g} s: less, or something else, may do too."
    )


def test_a_search_that_is_cut_short_names_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 1.0, 2.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(times, 9.0))
    text = what_would_help(lambda each: each.context <= 512, Asked(1024, 4, 16.0))
    assert text == (
        "What would help: a context of 512 tokens instead of 1024. The search was cut short after 5 s: less, or "
        "something else, may do too."
    )
