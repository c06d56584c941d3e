"""The simulator itself: repeatable, faithful to TCP, and able to hurt."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.scenarios import LOSSES, SCENARIOS, play
from runtime.actors import Actor, Lane, Message
from runtime.cluster import PeerState
from runtime.errors import AskTimeout
from runtime.testing.clock import run
from runtime.testing.simulation import (
    Conditions,
    Process,
    Saturation,
    SimulatedNode,
    Simulation,
    differences,
    simulate,
    simulation_clock,
)
from tests.wire.messages import Double, Doubler, Number

ROOT = Path(__file__).parents[2]


@pytest.fixture
def anyio_backend() -> Any:
    return simulation_clock()


class Note(Message, frozen=True, tag="test.note"):
    number: int


class BulkNote(Message, frozen=True, tag="test.bulk_note"):
    lane = Lane.BULK
    number: int


class Notes(Actor):
    """Keeps the numbers that it is told."""

    def __init__(self, heard: list[tuple[str, int]]) -> None:
        self._heard = heard

    async def receive(self, message: Message) -> None:
        match message:
            case Note(number):
                self._heard.append(("control", number))
            case BulkNote(number):
                self._heard.append(("bulk", number))


def tell_numbers(source: SimulatedNode, target: SimulatedNode, count: int) -> list[tuple[str, int]]:
    """Send numbers on the control lane, and return the list that they arrive in."""
    heard: list[tuple[str, int]] = []
    ref = target.spawn(lambda: Notes(heard), f"notes-{source.name}")
    for number in range(count):
        source.system.tell(ref, Note(number))
    return heard


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(scenario: str) -> None:
    first, again = (simulate(play(scenario, 7, keep_frames=True)) for _ in range(2))
    assert list(differences(first[1].trace, again[1].trace)) == []
    assert first[0] == again[0]
    assert simulate(play(scenario, 8))[0].digest != first[0].digest


def test_the_same_seed_gives_the_same_trace_in_processes_that_hash_differently() -> None:
    scenario = next(iter(LOSSES))
    code = (
        "from benchmarks.chaos.scenarios import play\n"
        "from runtime.testing.simulation import simulate\n"
        f"print(simulate(play({scenario!r}, 3))[0].digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


async def test_nothing_of_a_stalled_node_runs_and_afterwards_everything_does() -> None:
    async with Simulation(1) as world:
        a, b = await world.start("a", "b")
        doubler = b.spawn(Doubler, "doubler")
        world.stall("b", 2.0)
        begun = world.now
        with pytest.raises(AskTimeout):
            await a.system.ask(doubler, Double(1), 1.9)
        assert await a.system.ask(doubler, Double(2), 5) == Number(4)
        assert world.now == pytest.approx(begun + 2, abs=0.01)


async def test_a_frozen_process_sees_its_timers_late_in_order_and_cancelled_ones_never() -> None:
    loop = asyncio.get_running_loop()
    process, seen = Process("p"), list[tuple[str, float]]()
    start = loop.time()

    def see(what: str) -> None:
        seen.append((what, loop.time() - start))

    def begin() -> asyncio.TimerHandle:
        loop.call_later(3, partial(see, "third"))
        loop.call_later(1, partial(see, "first"))
        loop.call_later(7, partial(see, "last"))
        return loop.call_later(2, partial(see, "cancelled"))

    cancelled = process.call(begin)
    process.freeze()
    await asyncio.sleep(5)
    cancelled.cancel()
    assert seen == []
    process.thaw()
    await asyncio.sleep(5)
    assert seen == [("first", 5), ("third", 5), ("last", 7)]


@pytest.mark.parametrize("seed", range(5))
async def test_loss_and_jitter_delay_but_leave_no_hole_and_change_no_order(seed: int) -> None:
    async with Simulation(seed, Conditions(jitter=0.3, loss=0.2)) as world:
        a, b = await world.start("a", "b")
        begun = world.now
        heard = tell_numbers(a, b, 500)
        await world.until(lambda: len(heard) == 500)
        assert heard == [("control", number) for number in range(500)]
        assert world.now > begun + 0.2, "something was lost and sent again"


async def test_lanes_overtake_each_other() -> None:
    async with Simulation(2, Conditions(jitter=0.2)) as world:
        a, b = await world.start("a", "b")
        heard: list[tuple[str, int]] = []
        ref = b.spawn(lambda: Notes(heard), "notes")
        for number in range(40):
            a.system.tell(ref, Note(number))
            a.system.tell(ref, BulkNote(number))
            await asyncio.sleep(0.05)
        await world.until(lambda: len(heard) == 80)
        for lane in ("control", "bulk"):
            assert [number for of, number in heard if of == lane] == list(range(40))
        by_number = [number for _, number in heard]
        assert by_number != sorted(by_number)


async def test_what_a_partition_holds_up_arrives_after_it() -> None:
    async with Simulation(3) as world:
        a, b = await world.start("a", "b")
        world.partition({"a"}, {"b"})
        heard = tell_numbers(a, b, 3)
        await asyncio.sleep(1)
        assert heard == []
        world.heal()
        await world.until(lambda: len(heard) == 3, seconds=2)
        assert heard == [("control", 0), ("control", 1), ("control", 2)]
        assert world.downs() == []


async def test_a_one_way_partition_lets_the_other_way_through() -> None:
    async with Simulation(4) as world:
        a, b = await world.start("a", "b")
        world.block("a", "b")
        there, back = tell_numbers(a, b, 1), tell_numbers(b, a, 1)
        await asyncio.sleep(1)
        assert (there, back) == ([], [("control", 0)])


async def test_a_lasting_partition_is_two_downs_and_after_it_the_cluster_is_whole_again() -> None:
    async with Simulation(5) as world:
        a, b = await world.start("a", "b")
        world.partition({"a"}, {"b"})
        await world.until(lambda: a.sees()["b"] is PeerState.DOWN and b.sees()["a"] is PeerState.DOWN)
        world.heal()
        await world.whole()
        assert [(seen.observer, seen.subject) for seen in world.downs()] in (
            [("a", "b"), ("b", "a")],
            [("b", "a"), ("a", "b")],
        )


async def test_a_slow_reader_slows_its_sender_down() -> None:
    async with Simulation(6) as world:
        a, b = await world.start("a", "b")
        world.slow_reader("b", 200_000)
        load = Saturation(a, b)
        await asyncio.sleep(60)
        assert load.fault is None
        assert 8e6 < load.received < 13e6
        assert world.downs() == []


async def test_a_killed_process_is_noticed_by_its_connections_and_a_dead_machine_only_by_its_silence() -> None:
    async with Simulation(7) as world:
        await world.start("a", "b", "c")
        world.kill("b")
        await world.until(lambda: len(world.downs(of=["b"])) == 2, seconds=0.1)
        world.cut_power("c")
        await asyncio.sleep(2)
        assert world.downs(of=["c"]) == []
        await world.until(lambda: len(world.downs(of=["c"])) == 1)


async def test_a_machine_that_is_started_again_says_that_it_does_not_know_old_connections() -> None:
    async with Simulation(8) as world:
        a, _ = await world.start("a", "b")
        world.cut_power("b")
        again = await world.restart("b")
        assert not world.downs()
        await world.whole(seconds=5)
        assert [seen.state for seen in world.transitions if seen.observer == "a"] == ["up", "down", "up"]
        doubler = again.spawn(Doubler, "doubler")
        assert await a.system.ask(doubler, Double(3), 1) == Number(6)


async def test_connections_that_are_repeated_word_for_word_change_nothing() -> None:
    async with Simulation(9) as world:
        a, b = await world.start("a", "b")
        there, back = tell_numbers(a, b, 5), tell_numbers(b, a, 5)
        await world.until(lambda: len(there) == len(back) == 5)
        before = list(world.transitions)
        assert await world.duplicate("a") + await world.duplicate("b") >= 2
        assert len(there) == len(back) == 5
        assert world.transitions == before


async def test_a_simulation_gives_the_global_generator_back_as_it_was() -> None:
    random.seed(5)
    expected = random.Random(5).random()  # noqa: S311 - a test of it
    async with Simulation(1) as world:
        await world.start("a", "b")
    assert random.random() == expected  # noqa: S311 - likewise


def test_a_simulation_refuses_a_loop_whose_processes_cannot_be_frozen() -> None:
    async def main() -> None:
        Simulation(1)

    with pytest.raises(TypeError, match="needs a SimulationLoop, and VirtualClockLoop runs"):
        run(main())
