"""Whoever wants a model, and however many do, it is loaded once; a load that fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.actors import ActorRef
from runtime.errors import ActorStopped, CheckpointCorrupt, ModelError
from runtime.spi import Checkpoint, Finished, LayerSpan, LoadOptions, ModelLoaded, Started
from runtime.spi.source import Download
from runtime_dense.family import DenseFamily
from tests.inference.serving import events, request, serving, tokens
from tests.wire.loopback import eventually


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
