"""What a node grants while models are placed, loaded and used on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import PlacementRefused
from runtime.inference.accelerator import held_bytes, prepare, working_set_left
from runtime.inference.compute import ComputeThread
from runtime.spi import NodeMemory, Progress
from runtime.testing.models import tiny_llama
from tests.inference.serving import begun, request, serving
from tests.wire.loopback import eventually


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


async def test_memory_that_another_program_takes_after_the_plan_is_noticed_before_the_load(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        plenty = b.memory

        def fetch(name: str, progress: Progress) -> Path:
            b.memory = NodeMemory(total=8 << 30, available=1000)
            return tiny

        monkeypatch.setattr(b.source, "fetch", fetch)
        with pytest.raises(PlacementRefused, match="something else has taken the memory since"):
            await a.engine.load("tiny")
        assert not b.stages()
        await eventually(lambda: len(a.ledger.reservations) == len(b.ledger.reservations) == 0)
        b.memory = plenty


async def test_a_cache_that_grows_is_not_counted_twice(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        idle = a.memory

        async def compare() -> None:
            """The machine says what is left; what models hold is missing from that."""
            before = a.ledger.memory().grantable
            a.held = held_bytes()
            a.memory = NodeMemory(total=idle.total, available=idle.available - a.held)
            assert a.ledger.memory().grantable == before

        await a.engine.load("tiny")
        await compare()
        loaded = a.ledger.memory()
        async with begun(a, request(max_tokens=400, prompt=tuple(range(3, 300)))):
            await compare()
            assert a.ledger.memory().promised < loaded.promised, "the cache is in memory now"
            assert a.ledger.memory().reserved == loaded.reserved


async def test_what_mlx_holds_is_counted() -> None:
    import mlx.core as mx

    compute = ComputeThread()
    await compute.run(prepare)
    before = held_bytes()
    array = await compute.run(lambda: mx.zeros((1 << 20,), dtype=mx.float32))
    await compute.run(lambda: mx.eval(array))
    assert 0 <= held_bytes() - before - (4 << 20) <= 4096
    assert working_set_left() is None, "a CPU has no working set"
    assert compute.close(10)
