from __future__ import annotations

import asyncio

import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Request, Restart
from runtime.actors.system import CANCEL_ROUNDS, CANCEL_WAIT
from runtime.errors import ActorError, ActorStopped


class Worked(Message, frozen=True, tag="test.drain.worked"):
    pass


class Work(Request[Worked], frozen=True, tag="test.drain.work"):
    seconds: float = 0.0


class Worker(Actor):
    """Works for as long as it is asked to."""

    def __init__(self, log: list[str], name: str, cleanup: float = 0.0) -> None:
        self.log = log
        self.name = name
        self.cleanup = cleanup

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Work)
        await asyncio.sleep(message.seconds)
        self.log.append(f"{self.name} worked")
        return Worked()

    async def stopped(self) -> None:
        await asyncio.sleep(self.cleanup)
        self.log.append(f"{self.name} stopped")


class Parent(Worker):
    """Has one child, and passes its work on to it."""

    child: ActorRef

    async def started(self) -> None:
        self.child = self.context.spawn(lambda: Worker(self.log, "child"), "child")

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Work)
        return await self.context.ask(self.child, message, 60.0)


@pytest.fixture
def log() -> list[str]:
    return []


async def test_what_is_queued_is_finished_and_nothing_more_is_admitted(log: list[str]) -> None:
    system = ActorSystem("here")
    ref = system.spawn(lambda: Worker(log, "worker"), "worker")
    asks = [asyncio.create_task(system.ask(ref, Work(1.0), 60.0)) for _ in range(3)]
    await asyncio.sleep(0.5)
    closing = asyncio.create_task(system.shut_down(10.0))
    await asyncio.sleep(0)
    with pytest.raises(ActorStopped):
        system.tell(ref, Work())
    with pytest.raises(ActorStopped, match="shutting down"):
        system.spawn(lambda: Worker(log, "late"), "late")
    await closing
    assert [await ask for ask in asks] == [Worked()] * 3
    assert log == ["worker worked"] * 3 + ["worker stopped"]
    assert system.now() == pytest.approx(3.0)


async def test_children_still_take_work_while_their_parent_drains(log: list[str]) -> None:
    system = ActorSystem("here")
    ref = system.spawn(lambda: Parent(log, "parent"), "parent")
    asks = [asyncio.create_task(system.ask(ref, Work(1.0), 60.0)) for _ in range(2)]
    await asyncio.sleep(0.5)
    await system.shut_down(10.0)
    assert [await ask for ask in asks] == [Worked()] * 2
    assert log == ["child worked", "child worked", "child stopped", "parent stopped"]


async def test_what_is_queued_at_a_child_is_finished_too(log: list[str]) -> None:
    parent = Parent(log, "parent")
    system = ActorSystem("here")
    system.spawn(lambda: parent, "parent")
    await asyncio.sleep(0.001)
    asks = [asyncio.create_task(system.ask(parent.child, Work(1.0), 60.0)) for _ in range(3)]
    await asyncio.sleep(0.5)
    await system.shut_down(10.0)
    assert [await ask for ask in asks] == [Worked()] * 3
    assert log == ["child worked"] * 3 + ["child stopped", "parent stopped"]


async def test_late_actors_are_cancelled_and_what_is_left_is_answered_actor_stopped(log: list[str]) -> None:
    system = ActorSystem("here")
    ref = system.spawn(lambda: Worker(log, "worker"), "worker")
    in_hand = asyncio.create_task(system.ask(ref, Work(1000.0), 5000.0))
    queued = asyncio.create_task(system.ask(ref, Work(), 5000.0))
    await asyncio.sleep(0.001)
    system.tell(ref, Work())
    start = system.now()
    await system.shut_down(2.0)
    assert system.now() - start == pytest.approx(2.0)
    with pytest.raises(ActorStopped, match="was stopped while it handled Work"):
        await in_hand
    with pytest.raises(ActorStopped, match="stopped before it handled Work"):
        await queued
    assert system.dead_letters.counts == {"stopped": 1}
    assert log == ["worker stopped"]


async def test_an_ask_to_another_node_ends_with_the_system() -> None:
    class Silent:
        def send(self, node: str, signal: object, lane: object) -> None:
            del node, signal, lane

        async def room(self, node: str, lane: object) -> None:
            del node, lane

    system = ActorSystem("here")
    system.join(Silent())
    asking = asyncio.create_task(system.ask(ActorRef("there", "/actor"), Work(), 60.0))
    await asyncio.sleep(0)
    await system.shut_down(1.0)
    with pytest.raises(ActorStopped, match="node here shut down while there/actor was asked"):
        await asking


async def test_a_parent_cancelled_while_it_waits_for_its_children_still_stops_after_them(log: list[str]) -> None:
    system = ActorSystem("here")
    parents: list[Parent] = []

    def make() -> Parent:
        parents.append(Parent(log, "parent"))
        return parents[-1]

    ref = system.spawn(make, "parent")
    await asyncio.sleep(0.001)
    busy = asyncio.create_task(system.ask(parents[0].child, Work(1000.0), 5000.0))
    await asyncio.sleep(0.001)
    system.stop(ref)
    ended = asyncio.create_task(system.stopped(ref))
    await asyncio.sleep(0.001)
    await system.shut_down(1.0)
    assert log == ["child stopped", "parent stopped"]
    assert await ended == "killed"
    with pytest.raises(ActorStopped):
        await busy


async def test_an_actor_is_cancelled_again_when_its_cleanup_hangs(log: list[str]) -> None:
    system = ActorSystem("here")
    system.spawn(lambda: Worker(log, "worker", cleanup=1e6), "worker")
    await asyncio.sleep(0.001)
    start = system.now()
    await system.shut_down(2.0)
    assert system.now() - start == pytest.approx(2.0)
    assert log == []
    assert not system._cells


async def test_a_shutdown_ends_even_if_an_actor_never_does() -> None:
    class Deaf(Actor):
        async def started(self) -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    release = asyncio.Event()
    system = ActorSystem("here")
    ref = system.spawn(Deaf, "deaf")
    await asyncio.sleep(0.001)
    start = system.now()
    await system.shut_down(2.0)
    assert system.now() - start == pytest.approx(2.0 + CANCEL_ROUNDS * CANCEL_WAIT)
    release.set()
    await system.stopped(ref)


async def test_an_actor_spawned_the_moment_before_ends_too(log: list[str]) -> None:
    system = ActorSystem("here")
    ref = system.spawn(lambda: Worker(log, "worker"), "worker")
    cell = system._find(ref)
    assert cell is not None
    cell.kill()  # before its task has made its first step
    assert await system.stopped(ref) == "killed"
    assert not system._cells
    await system.shut_down(0)


async def test_a_stop_cuts_a_drain_short(log: list[str]) -> None:
    system = ActorSystem("here")
    ref = system.spawn(lambda: Worker(log, "worker"), "worker")
    asks = [asyncio.create_task(system.ask(ref, Work(1.0), 60.0)) for _ in range(3)]
    await asyncio.sleep(0.5)
    closing = asyncio.create_task(system.shut_down(10.0))
    await asyncio.sleep(0.1)
    system.stop(ref)
    await closing
    results = await asyncio.gather(*asks, return_exceptions=True)
    assert results[0] == Worked()
    assert all(isinstance(result, ActorStopped) for result in results[1:])


async def test_actors_that_fail_while_draining_are_not_restarted(log: list[str]) -> None:
    lost: list[Exception] = []

    class Fragile(Worker):
        async def receive(self, message: Message) -> Message | None:
            await super().receive(message)
            raise ValueError("broken")

    system = ActorSystem("here", lost.append)
    ref = system.spawn(lambda: Fragile(log, "fragile"), "fragile", restart=Restart.PERMANENT)
    system.tell(ref, Work(1.0))
    system.tell(ref, Work(1.0))
    await asyncio.sleep(0.5)
    await system.shut_down(10.0)
    assert log == ["fragile worked", "fragile stopped"]
    assert system.dead_letters.counts == {"stopped": 1}
    assert not lost


async def test_shutting_down_twice_is_harmless(log: list[str]) -> None:
    system = ActorSystem("here")
    system.spawn(lambda: Worker(log, "worker"), "worker")
    await system.shut_down(1.0)
    await system.shut_down(1.0)
    with pytest.raises(ActorError):
        system.spawn(lambda: Worker(log, "worker"), "worker")
