from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.actors import Actor, ActorSystem, Message
from runtime.cluster import LEDGER, Ledger, Reserve
from runtime.cluster.ledger import Settled
from runtime.errors import ModelUnsupported, RuntimeFault
from runtime.inference.catalogue import Catalogue
from runtime.inference.compute import ComputeThread
from runtime.inference.progress import ProgressBoard
from runtime.inference.protocol import OpenStage
from runtime.inference.stage import STAGES, StageHost
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily, ModelListing, ModelSource, NodeMemory, Progress
from runtime.testing.models import tiny_llama
from tests.wire.loopback import eventually


class OneFolder(ModelSource):
    """Has one model."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def claims(self, name: str) -> bool:
        return True

    def local(self) -> list[ModelListing]:
        return []

    def fetch(self, name: str, progress: Progress) -> Path:
        return self._path


class Watched(ModelFamily):
    """Notes that it was asked to load, and declines."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        self._events.append("load")
        return "this is a test"

    def build(self, config: dict[str, Any], tensors: Any = None) -> Any:
        raise NotImplementedError

    def load(self, *args: Any) -> None:
        raise NotImplementedError


class Driver(Actor):
    """Lives."""

    async def receive(self, message: Message) -> None:
        """Take what comes."""


async def test_a_pause_is_announced_before_a_slice_is_loaded_and_taken_back_after_also_when_it_fails(
    tmp_path: Path,
) -> None:
    events: list[str] = []

    @contextmanager
    def pausing() -> Iterator[None]:
        events.append("pause")
        try:
            yield
        finally:
            events.append("back")

    catalogue = Catalogue({"one": OneFolder(tiny_llama(tmp_path / "model", layers=1))})
    checkpoint = await catalogue.fetch("tiny", lambda progress: None)
    compute = ComputeThread()
    system = ActorSystem("here")
    try:
        host = system.spawn(
            lambda: StageHost(catalogue, {"watched": Watched(events)}, compute, ProgressBoard(), (), pausing), STAGES
        )
        driver = system.spawn(Driver, "driver")
        ledger = Ledger(system, lambda: NodeMemory(total=1000, available=1000)).start()
        grant = await system.ask(ledger, Reserve(model="tiny", epoch=1, bytes=10, owner=driver), 5)
        options = LoadOptions("float32", dequantize=False)
        order = OpenStage("tiny", checkpoint.digest, LayerSpan(0, 1, 1), options, driver, grant.reservation)
        with pytest.raises(RuntimeFault, match="this is a test"):
            await system.ask(host, order, 30.0)
        assert events == ["pause", "load", "back"]
    finally:
        await system.shut_down(1.0)
        compute.close(1.0)


class Agreeing(Actor):
    """A ledger that finds every reservation in order."""

    async def receive(self, message: Message) -> Message:
        """Say so."""
        return Settled()


class Slow(Watched):
    """Takes its time to build a model."""

    def __init__(self, events: list[str], go: threading.Event) -> None:
        super().__init__(events)
        self._go = go

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        return None

    def build(self, config: dict[str, Any], tensors: Any = None) -> Any:
        self._events.append("build")
        self._go.wait(30)
        raise ModelUnsupported("this is a test")


async def test_a_stage_whose_opening_is_given_up_ends(tmp_path: Path) -> None:
    events: list[str] = []
    go = threading.Event()
    catalogue = Catalogue({"one": OneFolder(tiny_llama(tmp_path / "model", layers=1))})
    checkpoint = await catalogue.fetch("tiny", lambda progress: None)
    compute = ComputeThread()
    system = ActorSystem("here")
    try:
        host = system.spawn(
            lambda: StageHost(catalogue, {"slow": Slow(events, go)}, compute, ProgressBoard(), ()), STAGES
        )
        driver = system.spawn(Driver, "driver")
        system.spawn(Agreeing, LEDGER.removeprefix("/"))
        order = OpenStage("tiny", checkpoint.digest, LayerSpan(0, 1, 1), LoadOptions("float32", False), driver, 1)
        opening = asyncio.ensure_future(system.ask(host, order, 30))
        await eventually(lambda: events == ["build"])
        assert [info.path for info in system.actors() if info.path.startswith(f"/{STAGES}/")]
        opening.cancel()
        await eventually(lambda: not any("open tiny" in task.get_name() for task in asyncio.all_tasks()))
        go.set()
        await eventually(lambda: not [info for info in system.actors() if info.path.startswith(f"/{STAGES}/")])
    finally:
        go.set()
        await system.shut_down(5)
        compute.close(1.0)
