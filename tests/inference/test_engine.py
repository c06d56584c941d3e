"""One node, or two on loopback, serve tiny models; and nothing is left of what fails or is given up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from anyio import to_thread

from runtime.actors import ActorRef
from runtime.errors import (
    ActorStopped,
    CheckpointCorrupt,
    ContextExceeded,
    InvalidRequest,
    ModelError,
    ModelInUse,
    ModelNotFound,
    Overloaded,
    PlacementRefused,
    RuntimeFault,
)
from runtime.inference import recovery
from runtime.inference.driver import DriverLimits
from runtime.inference.engine import TOKENIZERS
from runtime.inference.protocol import Cancel, Submit, Submitted
from runtime.inference.session import Session
from runtime.spi import (
    Chat,
    ChatMessage,
    Checkpoint,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    LayerSpan,
    LoadOptions,
    ModelLoaded,
    ModelUnloaded,
    NodeMemory,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    RequestFinished,
    Sampling,
    StagePlan,
    Started,
    Telemetry,
    TelemetryEvent,
    Text,
    Tokens,
)
from runtime.spi.caller import CALLER
from runtime.spi.source import Download
from runtime.testing.models import tiny_llama
from runtime_dense.family import DenseFamily
from tests.inference.serving import (
    GREEDY,
    PROMPT,
    begun,
    events,
    reference,
    request,
    serving,
    tokens,
)
from tests.wire.loopback import DEADLINE, Observer, eventually

LONG = 400


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "other", seed=7, sliding=8, layers=6)


# -- the same text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")], ids=len)
@pytest.mark.parametrize("kind", ["tiny", "other"])
async def test_tokens_equal_those_of_mlx_lm(names: tuple[str, ...], kind: str, tiny: Path, other: Path) -> None:
    folder = {"tiny": tiny, "other": other}[kind]
    expected = reference(folder, PROMPT, 48)
    async with serving(*names, folders={kind: folder}) as nodes:
        for node in nodes:
            assert await tokens(node, request(kind, max_tokens=48)) == expected
        assert sum(len(node.stages()) for node in nodes) == len(names)
        await eventually(lambda: not any(node.sequences() for node in nodes))


async def test_several_at_once_do_not_disturb_each_other(tiny: Path) -> None:
    prompts = [tuple(range(start, start + length)) for start, length in ((3, 1), (9, 2), (30, 16), (7, 33), (50, 90))]
    expected = [reference(tiny, prompt, 20) for prompt in prompts]
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        work = [
            tokens(node, request(prompt=prompt, max_tokens=20))
            for prompt, node in zip(prompts, (a, b, a, b, a), strict=True)
        ]
        assert await asyncio.gather(*work) == expected


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_one_token_can_be_asked_of_a_prompt_of_one_token(names: tuple[str, ...], tiny: Path) -> None:
    async with serving(*names, folders={"tiny": tiny}) as nodes:
        heard = await events(nodes[0], request(prompt=(9,), max_tokens=1))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert (finished.reason, finished.usage.completion_tokens) == (FinishReason.LENGTH, 1)
        assert [t.token.id for e in heard if isinstance(e, Delta) for t in e.tokens] == reference(tiny, (9,), 1)


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_the_context_can_be_filled_to_its_last_token(names: tuple[str, ...], tiny: Path) -> None:
    async with serving(*names, folders={"tiny": tiny}, context=64) as nodes:
        assert await tokens(nodes[0], request(max_tokens=None)) == reference(tiny, PROMPT, 64 - len(PROMPT))
        with pytest.raises(ContextExceeded, match="64"):
            await events(nodes[0], request(prompt=tuple(range(3, 67))))
        assert len(await tokens(nodes[0], request(prompt=tuple(range(3, 67)), max_tokens=None, truncate=True))) == 32


async def test_the_end_of_text_ends_it_and_is_not_in_the_text(tiny: Path) -> None:
    prompt = next(p for start in range(3, 300) if 2 in reference(tiny, p := tuple(range(start, start + 4)), 60))
    async with serving("a", folders={"tiny": tiny}) as (a,):
        heard = await events(a, request(prompt=prompt, max_tokens=60, ignore_eos=False, logprobs=None))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert finished.reason is FinishReason.STOP
        assert finished.usage.completion_tokens == reference(tiny, prompt, 60).index(2) + 1
        assert "<|im_end|>" not in "".join(event.text for event in heard if isinstance(event, Delta))
        await eventually(lambda: a.sequences() == 0)


async def test_a_stop_text_ends_it_everywhere(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        whole = "".join(e.text for e in await events(b, request(max_tokens=40)) if isinstance(e, Delta))
        stop = whole[20:23]
        heard = await events(b, request(max_tokens=LONG, stop=(stop,)))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert (finished.reason, finished.stop) == (FinishReason.STOP, stop)
        assert "".join(e.text for e in heard if isinstance(e, Delta)) == whole[: whole.index(stop)]
        await eventually(lambda: a.sequences() + b.sequences() == 0)


async def test_log_probabilities_of_alternatives_come_with_each_token(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        for event in await events(a, request(logprobs=3)):
            if isinstance(event, Delta):
                for scored in event.tokens:
                    assert len(scored.top) == 3
                    assert scored.top[0] == (scored.token, scored.logprob)


@pytest.mark.parametrize("sampling", [Sampling(seed=5), Sampling(seed=5, top_p=0.9, top_k=40)], ids=str)
async def test_a_seed_gives_the_same_tokens_on_any_number_of_nodes_and_in_any_company(
    sampling: Sampling, tiny: Path
) -> None:
    found = []
    for names in (("a",), ("a", "b"), ("a", "b", "c")):
        async with serving(*names, folders={"tiny": tiny}) as nodes:
            company = [tokens(node, request(sampling=Sampling(), max_tokens=40)) for node in nodes]
            seeded, *others = await asyncio.gather(tokens(nodes[-1], request(sampling=sampling)), *company)
            found.append(seeded)
            assert seeded not in [other[: len(seeded)] for other in others]
    assert found[0] == found[1] == found[2]


# -- giving up ------------------------------------------------------------------------------------------------------


async def test_closing_a_generation_early_frees_everything(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        async with begun(b, request(max_tokens=LONG)):
            assert a.sequences() > 0
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        assert isinstance(b.telemetry.events[-1], RequestFinished)
        assert b.telemetry.events[-1].reason == "cancelled"
        assert len(await tokens(b, request())) == 16


@pytest.mark.parametrize("turns", range(12))
async def test_closing_a_generation_at_any_early_moment_frees_everything(turns: int, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        stream = a.engine.generate(request(max_tokens=LONG))
        await anext(stream)
        for _ in range(turns):
            await asyncio.sleep(0)
        await stream.aclose()
        await eventually(lambda: a.sequences() == 0)
        # Whatever the stage was told late is in its mailbox before this.
        assert len(await tokens(a, request())) == 16
        await eventually(lambda: a.sequences() == 0)


async def test_a_sequence_that_is_cancelled_before_it_is_opened_leaves_nothing_on_the_stage(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        (entry,) = a.registry.entries()
        session = a.system.spawn(lambda: Observer(entry.driver, []), "session")
        submit = Submit(session, PROMPT, GREEDY, seed=0, max_tokens=9, logprobs=None, eos=())
        submitting = asyncio.create_task(a.system.ask(entry.driver, submit, 10))
        await asyncio.sleep(0)
        # Both are in the driver's mailbox now, and it takes them without a turn of the loop in between.
        a.system.tell(entry.driver, Cancel(1))
        assert await submitting == Submitted(1)
        assert len(await tokens(a, request())) == 16
        await eventually(lambda: a.sequences() == 0)


async def test_a_sequence_that_waits_can_be_given_up(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=2, prefix_cache=False, keep_alive=-1)
    async with serving("a", folders={"tiny": tiny}, limits=limits) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            waiting = a.engine.generate(request())
            await anext(waiting)
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 2)
            await waiting.aclose()
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 1)
        await eventually(lambda: a.sequences() == 0)


async def test_one_generation_too_many_is_refused_and_the_others_go_on(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=1, prefix_cache=False, keep_alive=-1)
    async with (
        serving("a", folders={"tiny": tiny}, limits=limits) as (a,),
        begun(a, request(max_tokens=LONG)) as running,
    ):
        second = asyncio.create_task(tokens(a, request()))
        await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 2)
        with pytest.raises(Overloaded, match="try again"):
            await events(a, request())
        await running.aclose()
        assert len(await second) == 16


async def test_a_session_that_breaks_ends_its_generation_with_a_fault(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Session, token: object) -> None:
        raise KeyError("no such token")

    async with serving("a", folders={"tiny": tiny}) as (a,):
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_on_token", broken)
            async with asyncio.timeout(DEADLINE):
                with pytest.raises(ActorStopped):
                    await events(a, request())
        await eventually(lambda: a.sequences() == 0)
        assert len(await tokens(a, request())) == 16


async def test_stopping_the_node_ends_generations_with_a_fault(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,), begun(a, request(max_tokens=LONG)) as stream:
        stopping = asyncio.create_task(a.system.shut_down(2.0))
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(RuntimeFault):
                async for _ in stream:
                    pass
        await stopping


# -- loading and letting go -------------------------------------------------------------------------------------------


async def test_unloading_waits_for_what_runs(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)) as stream:
            unloading = asyncio.create_task(a.engine.unload("tiny"))
            await eventually(lambda: a.drivers()[0]._unloading)
            rest = [event async for event in stream]
            assert isinstance(rest[-1], Finished)
            assert rest[-1].usage.completion_tokens == LONG
        await unloading
        await eventually(lambda: not a.stages() and not len(a.ledger.reservations))
        assert await a.engine.loaded() == []
        await a.engine.unload("tiny")
        assert [type(event) for event in a.telemetry.events if not isinstance(event, RequestFinished)] == [
            ModelLoaded,
            ModelUnloaded,
        ]


async def test_a_model_that_is_wanted_while_it_is_unloaded_stays_and_is_not_loaded_twice(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            reserved = a.ledger.memory().reserved
            (before,) = await a.engine.loaded()
            unloading = asyncio.create_task(a.engine.unload("tiny"))
            await eventually(lambda: a.drivers()[0]._unloading)
            assert len(await tokens(a, request())) == 16
            assert a.ledger.memory().reserved == reserved
            (listed,) = await a.engine.loaded()
            assert (listed.stages, listed.active) == (before.stages, 1)
            with pytest.raises(ModelInUse, match="asked for again"):
                await unloading
        assert len(a.stages()) == len(await a.engine.loaded()) == 1
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages() and not a.ledger.memory().reserved)


async def test_an_unload_waits_for_whoever_was_told_that_the_model_is_ready(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        load_tokenizer, told, go_on = a.engine._tokenizer, asyncio.Event(), asyncio.Event()

        async def slowly(*order: Any) -> Any:
            told.set()
            await go_on.wait()
            return await load_tokenizer(*order)

        monkeypatch.setattr(a.engine, "_tokenizer", slowly)
        (driver,) = a.drivers()
        generating = asyncio.create_task(tokens(a, request()))
        await told.wait()
        unloading = asyncio.create_task(a.engine.unload("tiny"))
        await eventually(lambda: driver._unloading)
        go_on.set()
        assert len(await generating) == 16
        await unloading
        assert sum(isinstance(event, ModelLoaded) for event in a.telemetry.events) == 1
        await eventually(lambda: not a.stages())


async def test_an_unload_does_not_wait_for_those_who_load_or_are_refused(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        with pytest.raises(InvalidRequest):
            await events(a, GenerationRequest("tiny", Text(""), sampling=GREEDY))
        async with asyncio.timeout(DEADLINE):
            await a.engine.unload("tiny")
        await eventually(lambda: not a.stages())


async def test_a_request_whose_driver_ended_before_it_was_submitted_goes_to_the_next_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        load_tokenizer = a.engine._tokenizer
        ends = 1

        async def after_the_end(*order: Any) -> Any:
            nonlocal ends
            if ends:
                ends -= 1
                a.system.stop(a.registry.entries()[0].driver)
                await eventually(lambda: not a.drivers())
            return await load_tokenizer(*order)

        monkeypatch.setattr(a.engine, "_tokenizer", after_the_end)
        heard = await events(a, request())
        assert [type(event) for event in heard].count(Started) == 1
        assert isinstance(heard[-1], Finished)
        assert heard[-1].usage.completion_tokens == 16
        await eventually(lambda: a.sequences() == 0 and len(a.drivers()) == 1)


class BrokenSink(Telemetry):
    """Fails at every event."""

    def emit(self, event: TelemetryEvent) -> None:
        raise KeyError(type(event).__name__)


async def test_telemetry_that_breaks_harms_neither_requests_nor_stages_nor_other_telemetry(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        a.sinks = (BrokenSink(), a.telemetry)
        a.engine._telemetry = a.sinks
        assert len(await tokens(a, request())) == 16
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages())
        assert [type(event) for event in a.telemetry.events] == [ModelLoaded, RequestFinished, ModelUnloaded]


async def test_a_model_that_nobody_wants_is_unloaded(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        assert len(await tokens(a, request(keep_alive=0))) == 16
        await eventually(lambda: not a.drivers() and not a.stages() and not len(a.ledger.reservations))
        assert await a.engine.loaded() == []
        assert len(await tokens(a, request(keep_alive=-1))) == 16


async def test_a_generation_outlasts_its_keep_alive(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        assert len(await tokens(a, request(keep_alive=0, max_tokens=LONG))) == LONG


async def test_many_who_want_a_model_load_it_once(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await asyncio.gather(*(a.engine.load("tiny") for _ in range(5)))
        assert len(a.drivers()) == 1
        assert sum(isinstance(event, ModelLoaded) for event in a.telemetry.events) == 1


async def test_nodes_that_want_a_model_at_once_agree_on_one_driver(tiny: Path) -> None:
    async with serving("a", "b", "c", folders={"tiny": tiny}) as nodes:
        await asyncio.gather(*(node.engine.load("tiny") for node in nodes for _ in range(2)))
        assert sum(len(node.drivers()) for node in nodes) == 1
        assert sum(len(node.stages()) for node in nodes) == 3


class SlowFamily(DenseFamily):
    """Stays in the middle of a load until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.finished = 0

    def load(
        self,
        model: Any,
        checkpoint: Checkpoint,
        span: LayerSpan,
        options: LoadOptions,
        progress: Callable[[int, int], None],
    ) -> None:
        self.reached.set()
        assert self.go_on.wait(10)
        super().load(model, checkpoint, span, options, progress)
        self.finished += 1


async def test_a_load_goes_on_for_others_when_one_who_waits_goes_away(tiny: Path) -> None:
    family = SlowFamily()
    async with serving("a", folders={"tiny": tiny}, family=family) as (a,):
        first, second = (asyncio.create_task(tokens(a, request())) for _ in range(2))
        await eventually(family.reached.is_set)
        first.cancel()
        family.go_on.set()
        assert len(await second) == 16
        with pytest.raises(asyncio.CancelledError):
            await first
        await eventually(lambda: a.sequences() == 0)


async def test_a_stage_gives_up_loading_when_its_driver_is_gone(tiny: Path) -> None:
    family = SlowFamily()
    async with serving("a", folders={"tiny": tiny}, family=family) as (a,):
        loading = asyncio.create_task(a.engine.load("tiny"))
        await eventually(family.reached.is_set)
        a.system.stop(ActorRef("a", "/models/1"))
        with pytest.raises(ActorStopped):
            await loading
        await eventually(lambda: not len(a.ledger.reservations))
        family.go_on.set()
        await eventually(lambda: not a.stages())
        assert family.finished == 0
        assert len(await tokens(a, request())) == 16


async def test_loading_tells_its_progress_on_the_event_loop(tiny: Path) -> None:
    heard: list[tuple[str, int | None]] = []
    async with serving("a", folders={"tiny": tiny}) as (a,):
        loop_thread = threading.get_ident()

        def watch(progress: Download) -> None:
            assert threading.get_ident() == loop_thread
            heard.append((progress.step, progress.total))

        await a.engine.load("tiny", progress=watch)
    assert ("loading", heard[-1][1]) in heard


@pytest.mark.parametrize("early", [False, True])
async def test_unloading_gives_all_the_memory_back(early: bool, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", hidden=256, vocab=4000)
    async with serving("a", folders={"tiny": folder}) as (a,):
        gc.collect()
        before = await a.compute.run(mx.get_active_memory)
        await a.engine.load("tiny")
        weights = a.telemetry.events[0]
        assert isinstance(weights, ModelLoaded)
        assert await a.compute.run(mx.get_active_memory) - before >= weights.bytes > 4_000_000
        if early:
            # Steps of the last generation may still be on their way.
            async with begun(a, request(max_tokens=LONG)):
                pass
        else:
            await events(a, request())
        await a.engine.unload("tiny")
        await eventually(lambda: any(isinstance(event, ModelUnloaded) for event in a.telemetry.events))
        async with asyncio.timeout(DEADLINE):
            # The last step of a generation that was given up may hold the slice for a moment longer.
            while await a.compute.run(mx.get_active_memory) - before >= 100_000:  # noqa: ASYNC110 - MLX tells nobody
                await asyncio.sleep(0.01)
        assert await a.compute.run(mx.get_cache_memory) < 100_000


# -- refusals -------------------------------------------------------------------------------------------------------


async def test_an_unknown_model_is_not_found_and_nothing_stays(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(ModelNotFound, match="did you mean tiny"):
            await events(a, request("tini"))
        await eventually(lambda: not a.drivers())


async def test_senseless_settings_are_refused_before_anything_is_loaded(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(InvalidRequest, match="max_tokens"):
            await events(a, request(max_tokens=0))
        assert not a.drivers()


async def test_a_model_that_does_not_fit_leaves_nothing_reserved(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        plenty, b.memory = b.memory, b.memory.__class__(total=1000, available=1000)
        await eventually(lambda: (told := a.told("b")) is not None and told.available <= 1000)
        with pytest.raises(PlacementRefused, match="does not fit"):
            await a.engine.load("tiny")
        await eventually(lambda: not a.drivers())
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)
        b.memory = plenty
        await eventually(lambda: (told := a.told("b")) is not None and told.available > 1000)
        assert len(await tokens(a, request())) == 16


async def test_a_ledger_that_refuses_leaves_nothing_reserved_elsewhere(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        plenty, b.memory = b.memory, b.memory.__class__(total=1000, available=1000)
        # Before b tells of it.
        with pytest.raises(PlacementRefused, match="can be granted"):
            await a.engine.load("tiny")
        await eventually(lambda: not len(a.ledger.reservations) and not len(b.ledger.reservations))
        b.memory = plenty


class Scripted(PlacementPolicy):
    """Returns what it is told to."""

    def __init__(self, plan: Callable[[PlacementRequest], Plan]) -> None:
        self._plan = plan

    def plan(self, request: PlacementRequest) -> Plan:
        return self._plan(request)


def _stages(*spans: tuple[int, int], node: str = "a") -> Plan:
    return Plan(tuple(StagePlan(node, LayerSpan(start, stop, 4), 1000) for start, stop in spans), "so it is")


@pytest.mark.parametrize("spans", [(), ((0, 2),), ((0, 2), (3, 4)), ((2, 4), (0, 2)), ((0, 3), (2, 4)), ((1, 4),)])
async def test_a_plan_that_does_not_cover_every_layer_once_is_refused(
    spans: tuple[tuple[int, int], ...], tiny: Path
) -> None:
    policy = Scripted(lambda request: _stages(*spans))
    async with serving("a", folders={"tiny": tiny}, policy=policy) as (a,):
        with pytest.raises(PlacementRefused, match="are not the 4 layers"):
            await a.engine.load("tiny")
        await eventually(lambda: not len(a.ledger.reservations))


async def test_a_plan_with_a_node_that_is_not_there_is_refused(tiny: Path) -> None:
    policy = Scripted(lambda request: _stages((0, 4), node="nowhere"))
    async with serving("a", folders={"tiny": tiny}, policy=policy) as (a,):
        with pytest.raises(RuntimeFault, match="nowhere"):
            await a.engine.load("tiny")


async def test_a_policy_that_breaks_is_named_and_the_node_goes_on(tiny: Path) -> None:
    broken = True

    def plan(request: PlacementRequest) -> Plan:
        if broken:
            raise KeyError("no such node")
        return _stages((0, 2), (2, 4))

    async with serving("a", folders={"tiny": tiny}, policy=Scripted(plan)) as (a,):
        with pytest.raises(ModelError, match="placing tiny failed: KeyError"):
            await a.engine.load("tiny")
        broken = False
        assert await tokens(a, request()) == reference(tiny, PROMPT, 16)


class BrokenFamily(DenseFamily):
    """Fails to load as often as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def load(self, *args: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        super().load(*args)


@pytest.mark.parametrize("error", [CheckpointCorrupt("layers.3 is damaged"), KeyError("layers.3 is damaged")])
async def test_a_load_that_fails_says_why_and_the_next_one_works(error: Exception, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}, family=BrokenFamily(error)) as (a,):
        with pytest.raises(ModelError, match=r"layers\.3 is damaged"):
            await a.engine.load("tiny")
        await eventually(lambda: not a.stages() and not len(a.ledger.reservations))
        assert len(await tokens(a, request())) == 16


async def test_a_source_that_breaks_does_not_take_down_what_is_served(
    tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("a", folders={"tiny": tiny, "other": other}) as (a,):
        await a.engine.load("tiny")
        served = a.stages()

        def fetch(name: str, progress: object) -> Path:
            raise OSError("the disk is gone")

        monkeypatch.setattr(a.source, "fetch", fetch)
        with pytest.raises(ModelError, match="the disk is gone"):
            await a.engine.load("other")
        assert a.stages() == served


async def test_a_node_with_other_files_is_refused(tiny: Path, other: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        b.source.folders["tiny"] = other
        with pytest.raises(ModelError, match="other files for tiny"):
            await a.engine.load("tiny")
        await eventually(lambda: not a.stages() and not b.stages())
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)


# -- failures -------------------------------------------------------------------------------------------------------


async def test_a_step_that_fails_fails_its_micro_batch_only(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        await a.engine.load("tiny")
        async with begun(a, request(max_tokens=LONG)) as good:
            bad = a.engine.generate(request(max_tokens=LONG))
            await anext(bad)
            stage = b.stages()[0]
            await eventually(lambda: len(stage._sequences) == 2)
            victim = stage._sequences[max(stage._sequences)]
            victim.position += 1
            replayed = [event async for event in bad]
            assert [token.token.id for event in replayed if isinstance(event, Delta) for token in event.tokens] == (
                reference(tiny, PROMPT, LONG)
            )
            rest = [event async for event in good]
            assert isinstance(rest[-1], Finished)
            assert rest[-1].usage.completion_tokens == LONG
            assert b.stages() == [stage]
        await eventually(lambda: a.sequences() + b.sequences() == 0)


async def test_an_error_of_mlx_fails_the_sequence_and_not_the_stage(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await a.engine.load("tiny")
        stage = a.stages()[0]
        shard: Any = stage._shard
        forward = shard.forward
        shard.forward = lambda inputs, cache, launch: mx.zeros((2, 3)) @ mx.zeros((2, 3))
        with pytest.raises(RuntimeFault, match="matmul"):
            await events(a, request())
        shard.forward = forward
        assert await tokens(a, request()) == reference(tiny, PROMPT, 16)


async def test_losing_a_stages_node_leaves_the_text_as_it_would_have_been_and_frees_the_memory(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        whole = reference(tiny, PROMPT, LONG)
        heard: list[int] = []
        async with (
            asyncio.timeout(DEADLINE),
            contextlib.aclosing(a.engine.generate(request(max_tokens=LONG))) as stream,
        ):
            async for event in stream:
                if isinstance(event, Delta):
                    heard += [token.token.id for token in event.tokens]
                    if len(heard) == 40:
                        b.network.disconnect("a", "a test pulls the plug")
                elif isinstance(event, Finished):
                    assert event.usage.completion_tokens == LONG
        assert heard == whole
        assert len(a.drivers()) == 1
        await eventually(lambda: not b.drivers() and a.sequences() + b.sequences() == 0)
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages() and not b.stages() and not a.drivers())
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=5),
        Sampling(seed=5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, penalize_prompt=False),
    ],
)
async def test_losing_the_drivers_node_goes_on_with_the_same_seeded_text(tiny: Path, sampling: Sampling) -> None:
    order = request(max_tokens=LONG, sampling=sampling)
    async with serving("a", "b", folders={"tiny": tiny}, policy=Scripted(lambda r: _stages((0, 4)))) as (a, b):
        whole = await tokens(b, order)
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        (served,) = await b.engine.loaded()
        driver, other = (a, b) if a.drivers() else (b, a)
        heard: list[int] = []
        async with asyncio.timeout(DEADLINE), contextlib.aclosing(other.engine.generate(order)) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    heard += [token.token.id for token in event.tokens]
                    if len(heard) == 40:
                        driver.network.disconnect(other.name, "a test pulls the plug")
        assert served.name == "tiny"
        assert heard == whole


async def test_what_cannot_be_resumed_ends_with_a_fault_that_says_why(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(recovery, "LEAST_SECONDS", 1.0)
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        async with asyncio.timeout(DEADLINE), begun(a, request(max_tokens=LONG)) as stream:
            a.memory = NodeMemory(total=8 << 30, available=0)
            await b.network.close()
            with pytest.raises(PlacementRefused, match=r"interrupted after \d+ tokens .*node b.*lost.* not be resumed"):
                async for _ in stream:
                    pass
        await eventually(lambda: a.sequences() == 0)


async def test_losing_the_sessions_node_frees_its_sequences(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}, policy=Scripted(lambda r: _stages((0, 4)))) as (a, b):
        await a.engine.load("tiny")
        async with begun(b, request(max_tokens=LONG)):
            b.network.disconnect("a", "a test pulls the plug")
            await eventually(lambda: all(not driver._sessions for driver in a.drivers()))
        await eventually(lambda: a.sequences() + b.sequences() == 0)
        assert len(a.stages()) == 1


async def test_sequences_that_wait_for_a_driver_that_ends_wait_for_the_next(tiny: Path) -> None:
    limits = DriverLimits(sequences=1, waiting=3, prefix_cache=False, keep_alive=-1)
    async with serving("a", "b", folders={"tiny": tiny}, limits=limits) as (a, b):
        async with begun(a, request(max_tokens=LONG)) as running:
            waiting = [asyncio.create_task(tokens(a, request())) for _ in range(3)]
            await eventually(lambda: sum(len(driver._sessions) for driver in a.drivers()) == 4)
            a.system.stop(ActorRef("a", "/models/1"))
            async for _ in running:
                pass
            assert [len(heard) for heard in await asyncio.gather(*waiting)] == [16] * 3
        await eventually(lambda: a.sequences() + b.sequences() == 0)


# -- tokenizers -----------------------------------------------------------------------------------------------------


async def test_a_tokenizer_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    good = (folder / "tokenizer.json").read_bytes()
    async with serving("a", folders={"tiny": folder}) as (a,):
        (folder / "tokenizer.json").write_bytes(b"{")
        with pytest.raises(ModelError, match="tokenizer"):
            await events(a, request())
        (folder / "tokenizer.json").write_bytes(good)
        with pytest.raises(ModelError, match="the files of tiny have changed since it was loaded; unload it"):
            await events(a, request())
        await a.engine.unload("tiny")
        assert len(await tokens(a, request())) == 16


async def test_a_node_with_other_files_does_not_turn_anothers_tokens_into_text(tmp_path: Path, tiny: Path) -> None:
    class Alone(PlacementPolicy):
        def plan(self, request: PlacementRequest) -> Plan:
            return Plan((StagePlan("a", LayerSpan(0, request.layers, request.layers), 1 << 20),), "only a")

    async with serving("a", "b", folders={"tiny": tiny}, policy=Alone()) as (a, b):
        b.source.folders = {"tiny": tiny_llama(tmp_path / "changed", seed=3, vocab=400)}
        assert len(await tokens(a, request())) == 16
        with pytest.raises(ModelError, match=r"node b has other files for tiny than a \(digest"):
            await events(b, request())
        assert b.stages() == []


async def test_the_tokens_of_a_generation_that_is_given_up_are_counted(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        async with begun(a, request(max_tokens=LONG)):
            pass
        event = a.telemetry.events[-1]
        assert isinstance(event, RequestFinished)
        assert event.reason == "cancelled"
        assert event.completion_tokens > 0


async def test_prompts_wait_for_no_other_work_in_threads(tiny: Path) -> None:
    gate = threading.Event()
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await tokens(a, request())
        limiter = to_thread.current_default_thread_limiter()
        busy = [asyncio.create_task(to_thread.run_sync(gate.wait, 30)) for _ in range(int(limiter.total_tokens))]
        try:
            await eventually(lambda: limiter.available_tokens == 0)
            async with asyncio.timeout(DEADLINE):
                assert len(await tokens(a, request())) == 16
        finally:
            gate.set()
        await asyncio.gather(*busy)


async def test_only_the_last_tokenizers_are_kept(tmp_path: Path) -> None:
    folders = {f"tiny{seed}": tiny_llama(tmp_path / str(seed), seed=seed, layers=1) for seed in range(TOKENIZERS + 2)}
    async with serving("a", folders=folders) as (a,):
        for name in folders:
            assert len(await tokens(a, request(name, max_tokens=2))) == 2
        assert len(a.engine._tokenizers) == TOKENIZERS
        assert len(await tokens(a, request("tiny0", max_tokens=2))) == 2


async def test_a_model_with_more_rows_than_the_tokenizer_has_tokens_generates(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", vocab=4000)
    expected = reference(folder, PROMPT, 24)
    assert max(expected) > 1000
    async with serving("a", folders={"tiny": folder}) as (a,):
        assert await tokens(a, request(max_tokens=24, logprobs=2)) == expected


@pytest.mark.parametrize("text", ["\0", "\U0010ffff\u202e", "<|im_end|>" * 3, " " * 500])
async def test_any_text_is_a_prompt(text: str, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}, context=2048) as (a,):
        heard = await events(a, GenerationRequest("tiny", Text(text), sampling=GREEDY, max_tokens=2))
        assert isinstance(heard[-1], Finished)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (Text(""), "prompt"),
        (Text("half a \ud800 character"), "prompt"),
        (Tokens(()), "prompt"),
        (Tokens((5, 320)), "prompt"),
        (Tokens((-1,)), "prompt"),
        (Chat(()), "messages"),
        (Chat((ChatMessage("user", "half a \ud800 character"),)), "messages"),
    ],
    ids=str,
)
async def test_what_is_no_prompt_is_refused_by_name(prompt: Text | Tokens | Chat, param: str, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(InvalidRequest) as refused:
            await events(a, GenerationRequest("tiny", prompt, sampling=GREEDY, max_tokens=2))
        assert refused.value.param == param
        assert a.sequences() == 0


async def test_many_prompts_are_tokenized_at_once(tiny: Path) -> None:
    async with serving(
        "a", folders={"tiny": tiny}, limits=DriverLimits(sequences=8, waiting=32, prefix_cache=False, keep_alive=-1)
    ) as (a,):
        prompts = [Text(f"the quick brown fox number {number} " * 5) for number in range(16)]
        orders = [GenerationRequest("tiny", prompt, sampling=GREEDY, max_tokens=2) for prompt in prompts]
        heard = await asyncio.gather(*(events(a, order) for order in orders))
        assert all(isinstance(each[-1], Finished) for each in heard)


async def test_the_second_turn_of_a_chat_is_not_computed_twice_and_usage_says_so(tiny: Path) -> None:
    limits = DriverLimits(sequences=4, waiting=4, prefix_cache=True, keep_alive=-1)
    async with serving("a", "b", folders={"tiny": tiny}, limits=limits) as (a, _):

        def ask(tokens: tuple[int, ...]) -> GenerationRequest:
            return GenerationRequest("tiny", Tokens(tokens), sampling=GREEDY, max_tokens=8, ignore_eos=True)

        async def cached(tokens: tuple[int, ...], caller: str = "") -> int:
            reset = CALLER.set(caller)
            finished = (await events(a, ask(tokens)))[-1]
            CALLER.reset(reset)
            assert isinstance(finished, Finished)
            return finished.usage.cached_tokens

        turn = tuple(range(5, 105))
        assert await cached(turn) == 0
        assert await cached((*turn, 5, 6)) == len(turn)
        assert await cached((*turn, 5, 6), "another key") == 0
        assert await cached(turn[:20]) == 0
