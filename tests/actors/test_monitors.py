from __future__ import annotations

import asyncio
from collections import Counter as Tally
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import CURRENT, Actor, ActorRef, ActorSystem, Down, Message, Request, Restart


class Synced(Message, frozen=True, tag="test.monitors.synced"):
    pass


class Sync(Request[Synced], frozen=True, tag="test.monitors.sync"):
    pass


class Crash(Message, frozen=True, tag="test.monitors.crash"):
    pass


class Watcher(Actor):
    """Keeps the downs it gets; crashes on request, and then forgets them unless it shares the list."""

    def __init__(self, downs: list[Down] | None = None) -> None:
        self.downs = [] if downs is None else downs

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Down():
                self.downs.append(message)
            case Crash():
                raise ValueError("crash")
            case Sync():
                return Synced()
        return None


async def pair(system: ActorSystem, restart: Restart = Restart.PERMANENT) -> tuple[list[Down], ActorRef, ActorRef]:
    """Return the downs that a watcher gets, the watcher, and an actor to watch."""
    downs: list[Down] = []
    watcher = system.spawn(lambda: Watcher(downs), "watcher")
    target = system.spawn(Watcher, "target", restart=restart)
    await system.ask(target, Sync(), 1.0)
    return downs, watcher, target


def assert_nothing_kept(system: ActorSystem) -> None:
    assert not system._monitors.watchers
    assert not system._monitors.remote
    assert not any(cell.watching for cell in system._cells.values())


async def test_a_stop_is_a_normal_down(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    system.monitor(watcher, target)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(target, "normal")]
    assert_nothing_kept(system)


async def test_a_failure_is_a_failed_down_and_a_restart_is_none(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    system.monitor(watcher, target)
    for _ in range(3):
        system.tell(target, Crash())
    await system.ask(target, Sync(), 5.0)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == []
    system.tell(target, Crash())
    assert await system.stopped(target) == "failed"
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(target, "failed")]


@pytest.mark.parametrize("incarnation", [CURRENT, 1])
async def test_an_actor_that_is_not_there_is_down_at_once(system: ActorSystem, incarnation: int) -> None:
    downs, watcher, _ = await pair(system)
    nobody = ActorRef("here", "/nobody", incarnation)
    system.monitor(watcher, nobody)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(nobody, "noproc")]
    assert_nothing_kept(system)


async def test_a_stale_reference_is_not_there_even_if_its_path_lives(system: ActorSystem) -> None:
    downs, watcher, old = await pair(system)
    system.stop(old)
    await system.stopped(old)
    system.spawn(Watcher, "target")
    system.monitor(watcher, old)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(old, "noproc")]


async def test_a_node_without_a_transport_has_no_connection(system: ActorSystem) -> None:
    downs, watcher, _ = await pair(system)
    far = ActorRef("elsewhere", "/actor")
    system.monitor(watcher, far)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(far, "noconnection")]
    assert_nothing_kept(system)


async def test_monitoring_again_changes_nothing(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    for _ in range(3):
        system.monitor(watcher, target)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(target, "normal")]


async def test_a_down_names_the_target_as_its_watcher_did(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    by_path = ActorRef("here", target.path, CURRENT)
    system.monitor(watcher, by_path)
    system.monitor(watcher, target)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    assert sorted(downs, key=lambda down: down.ref) == [Down(by_path, "normal"), Down(target, "normal")]


async def test_a_monitor_taken_back_gives_no_down(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    system.monitor(watcher, target)
    system.demonitor(watcher, target)
    system.demonitor(watcher, target)
    assert_nothing_kept(system)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == []


async def test_taking_a_monitor_back_leaves_those_of_others(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    other_downs: list[Down] = []
    other = system.spawn(lambda: Watcher(other_downs), "other")
    system.monitor(watcher, target)
    system.monitor(other, target)
    system.demonitor(watcher, target)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    await system.ask(other, Sync(), 1.0)
    assert (downs, other_downs) == ([], [Down(target, "normal")])


async def test_monitors_survive_a_restart_of_the_watcher(system: ActorSystem) -> None:
    downs, watcher, target = await pair(system)
    system.monitor(watcher, target)
    system.tell(watcher, Crash())
    await system.ask(watcher, Sync(), 5.0)
    system.stop(target)
    await system.stopped(target)
    await system.ask(watcher, Sync(), 1.0)
    assert downs == [Down(target, "normal")]


async def test_nothing_is_kept_of_a_watcher_that_ended(system: ActorSystem) -> None:
    _, watcher, target = await pair(system)
    system.monitor(watcher, target)
    system.stop(watcher)
    await system.stopped(watcher)
    assert_nothing_kept(system)
    system.monitor(watcher, target)
    assert_nothing_kept(system)


Step = tuple[str, int, int]
Steps = st.lists(
    st.tuples(
        st.sampled_from(["spawn", "stop", "crash", "monitor", "demonitor", "turn", "sync"]),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=50,
)


@given(Steps)
async def test_every_monitor_gives_exactly_one_down_whatever_happens(steps: list[Step]) -> None:
    system = ActorSystem("here")
    downs: list[list[Down]] = [[], [], []]
    watchers = [system.spawn(partial(Watcher, kept), f"watcher{n}") for n, kept in enumerate(downs)]
    latest = [ActorRef("here", f"/target{n}", 1) for n in range(3)]
    # A monitor is open from the call until its Down or its demonitor; asking again meanwhile is the same monitor.
    owed: list[Tally[ActorRef]] = [Tally(), Tally(), Tally()]
    revoked: list[Tally[ActorRef]] = [Tally(), Tally(), Tally()]
    for step, w, t in steps:
        target = latest[t]
        cell = system._find(target)
        match step:
            case "spawn" if f"/target{t}" not in system._cells:
                latest[t] = system.spawn(Watcher, f"target{t}", restart=Restart.TEMPORARY)
            case "stop":
                system.stop(target)
            case "crash" if cell is not None and not cell.stopping:
                system.tell(target, Crash())
            case "monitor":
                watching = system._find(watchers[w])
                assert watching is not None
                if target not in (watching.watching or ()):
                    owed[w][target] += 1
                system.monitor(watchers[w], target)
            case "demonitor":
                watching = system._find(watchers[w])
                assert watching is not None
                if target in (watching.watching or ()):
                    revoked[w][target] += 1
                system.demonitor(watchers[w], target)
            case "turn":
                await asyncio.sleep(0)
            case "sync":
                await system.ask(watchers[w], Sync(), 1.0)
    for target in latest:
        system.stop(target)
        await system.stopped(target)
    for watcher in watchers:
        await system.ask(watcher, Sync(), 1.0)
    for kept, due, taken_back in zip(downs, owed, revoked, strict=True):
        assert Tally(down.ref for down in kept) == due - taken_back
    assert_nothing_kept(system)
    await system.shut_down(1.0)
