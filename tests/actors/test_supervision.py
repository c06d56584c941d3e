from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Request, Restart
from runtime.errors import ActorStopped, RemoteFailure

Script = Callable[["Scripted"], Awaitable[None]]


class Ran(Message, frozen=True, tag="test.supervision.ran"):
    life: int


class Run(Request[Ran], frozen=True, tag="test.supervision.run"):
    """Do something inside the actor; this works because a local message is not encoded."""

    script: Script


class Scripted(Actor):
    """Does what it is told; ``log`` outlives its lives."""

    def __init__(self, log: list[str], name: str = "actor", started: Script | None = None) -> None:
        self.log = log
        self.name = name
        self.script = started
        self.fail_in_stopped = False

    @property
    def life(self) -> int:
        return self.log.count(f"{self.name} started")

    async def started(self) -> None:
        self.log.append(f"{self.name} started")
        if self.script is not None:
            await self.script(self)

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Run)
        await message.script(self)
        return Ran(self.life)

    async def stopped(self) -> None:
        self.log.append(f"{self.name} stopped")
        if self.fail_in_stopped:
            raise OSError("cannot clean up")


async def nothing(actor: Scripted) -> None:
    del actor


async def crash(actor: Scripted) -> None:
    raise ValueError(f"{actor.name} crashed")


async def hang(actor: Scripted) -> None:
    del actor
    await asyncio.Event().wait()


def note(word: str) -> Run:
    async def script(actor: Scripted) -> None:
        actor.log.append(word)

    return Run(script)


async def test_a_restart_keeps_the_mailbox_and_discards_the_message_that_failed(system: ActorSystem) -> None:
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    for message in (note("before"), Run(crash), note("after"), note("later")):
        system.tell(ref, message)
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    assert log == ["actor started", "before", "actor stopped", "actor started", "after", "later"]
    assert not system.dead_letters.counts


async def test_a_restart_makes_a_new_actor_at_the_same_reference(system: ActorSystem) -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted([]))
        return made[-1]

    ref = system.spawn(make, "actor")
    system.tell(ref, Run(crash))
    await system.ask(ref, Run(nothing), 5.0)
    assert len(made) == 2
    assert made[0] is not made[1]
    assert made[1].context.self_ref == ref


async def test_messages_are_admitted_while_the_actor_waits_for_its_restart(system: ActorSystem) -> None:
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    with pytest.raises(RemoteFailure):
        await system.ask(ref, Run(crash), 1.0)
    assert log[-1] != "actor started"
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)


async def test_three_restarts_in_thirty_seconds_are_granted_and_the_next_failure_is_the_end() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    for _ in range(4):
        system.tell(ref, Run(crash))
    system.tell(ref, note("never"))
    assert await system.stopped(ref) == "failed"
    assert log.count("actor started") == 4
    assert len(lost) == 1
    assert "here/actor failed beyond its restart budget: ValueError('actor crashed')" in str(lost[0])
    assert system.dead_letters.counts == {"stopped": 1}
    await system.shut_down(1.0)


async def test_failures_far_apart_are_forgiven(system: ActorSystem) -> None:
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    for _ in range(8):
        system.tell(ref, Run(crash))
        await asyncio.sleep(20)
    assert await system.ask(ref, Run(nothing), 1.0) == Ran(9)


async def test_a_temporary_actor_is_not_restarted_and_nobody_above_is_told() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor", restart=Restart.TEMPORARY)
    system.tell(ref, Run(crash))
    assert await system.stopped(ref) == "failed"
    assert log == ["actor started", "actor stopped"]
    assert not lost
    await system.shut_down(1.0)


async def test_a_transient_actor_is_restarted_after_failures_and_escalates_beyond_the_intensity() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor", restart=Restart.TRANSIENT)
    for _ in range(4):
        system.tell(ref, Run(crash))
    assert await system.stopped(ref) == "failed"
    assert log.count("actor started") == 4
    assert len(lost) == 1
    await system.shut_down(1.0)


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_an_actor_that_stops_itself_has_ended_normally(system: ActorSystem, restart: Restart) -> None:
    async def leave(actor: Scripted) -> None:
        actor.context.stop_self()

    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor", restart=restart)
    assert await system.ask(ref, Run(leave), 1.0) == Ran(1)
    assert await system.stopped(ref) in ("normal", "noproc")
    assert log == ["actor started", "actor stopped"]


async def test_a_factory_that_fails_at_the_spawn_raises_there_and_leaves_no_trace(system: ActorSystem) -> None:
    def broken() -> Actor:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        system.spawn(broken, "actor")
    ref = system.spawn(lambda: Scripted([]), "actor")
    assert await system.ask(ref, Run(nothing), 1.0) == Ran(1)


async def test_a_factory_that_fails_at_a_restart_is_tried_again_within_the_budget() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    broken = [False, True, False]

    def make() -> Scripted:
        if broken.pop(0):
            raise LookupError("not now")
        return Scripted(log)

    ref = system.spawn(make, "actor")
    system.tell(ref, Run(crash))
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    broken.extend([True] * 10)
    system.tell(ref, Run(crash))
    assert await system.stopped(ref) == "failed"
    assert "not now" in str(lost[0])
    await system.shut_down(1.0)


async def test_an_exception_in_started_is_a_failure(system: ActorSystem) -> None:
    log: list[str] = []

    async def first_time_fails(actor: Scripted) -> None:
        if actor.life == 1:
            raise ValueError("not ready")

    ref = system.spawn(lambda: Scripted(log, started=first_time_fails), "actor")
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    assert log == ["actor started", "actor stopped", "actor started"]


async def test_an_exception_in_stopped_ends_the_actor_as_failed_without_escalation() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    actor = Scripted([])
    actor.fail_in_stopped = True
    ref = system.spawn(lambda: actor, "actor")
    system.stop(ref)
    assert await system.stopped(ref) == "failed"
    assert not lost
    await system.shut_down(1.0)


async def test_an_exception_in_stopped_does_not_hide_the_failure_before_it(system: ActorSystem) -> None:
    actor = Scripted([])
    actor.fail_in_stopped = True
    ref = system.spawn(lambda: actor, "actor", restart=Restart.TEMPORARY)
    cell = system._find(ref)
    assert cell is not None
    system.tell(ref, Run(crash))
    assert await system.stopped(ref) == "failed"
    assert cell.last_error == "ValueError('actor crashed')"


async def test_waiting_for_something_cancelled_elsewhere_is_a_failure_and_not_the_end(system: ActorSystem) -> None:
    async def wait_for_cancelled(actor: Scripted) -> None:
        del actor
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    with pytest.raises(RemoteFailure, match="CancelledError"):
        await system.ask(ref, Run(wait_for_cancelled), 1.0)
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)


# -- tasks --------------------------------------------------------------------------------------------------------


def starting(work: Callable[[], Awaitable[None]], name: str = "work") -> Script:
    async def script(actor: Scripted) -> None:
        async def run() -> None:
            await work()

        actor.context.start_task(run(), name)

    return script


async def test_the_failure_of_a_task_is_the_failure_of_its_actor(system: ActorSystem) -> None:
    async def fail() -> None:
        raise ValueError("in the background")

    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    cell = system._find(ref)
    assert cell is not None
    assert await system.ask(ref, Run(starting(fail)), 1.0) == Ran(1)
    await asyncio.sleep(1)
    assert await system.ask(ref, Run(nothing), 1.0) == Ran(2)
    assert cell.last_error == "ValueError('in the background')"


async def test_tasks_end_with_the_life_that_started_them(system: ActorSystem) -> None:
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("task ended")

    ref = system.spawn(lambda: Scripted(log), "actor")
    await system.ask(ref, Run(starting(work)), 1.0)
    system.tell(ref, Run(crash))
    await system.ask(ref, Run(nothing), 5.0)
    assert log == ["actor started", "task ended", "actor stopped", "actor started"]


async def test_several_failures_of_one_life_do_not_end_the_next(system: ActorSystem) -> None:
    gate = asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise ValueError("together")

    async def fail_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("while cancelled")

    async def start_and_crash(actor: Scripted) -> None:
        for work in (fail, fail, fail_when_cancelled):
            await starting(work)(actor)
        await asyncio.sleep(0)
        gate.set()
        await asyncio.sleep(0.1)
        raise ValueError("and the message too")

    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    system.tell(ref, Run(start_and_crash))
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    await asyncio.sleep(5)
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)


async def test_a_task_that_was_never_run_when_its_actor_stops_is_no_leak(system: ActorSystem) -> None:
    async def start_and_leave(actor: Scripted) -> None:
        await starting(hang_alone)(actor)
        actor.context.stop_self()

    async def hang_alone() -> None:
        await asyncio.Event().wait()

    ref = system.spawn(lambda: Scripted([]), "actor", restart=Restart.TRANSIENT)
    system.tell(ref, Run(start_and_leave))
    assert await system.stopped(ref) == "normal"


async def test_an_actor_that_is_over_starts_neither_tasks_nor_children(system: ActorSystem) -> None:
    class Late(Scripted):
        async def stopped(self) -> None:
            with pytest.raises(ActorStopped, match="has stopped and cannot start the task"):
                self.context.start_task(never(), "late")
            with pytest.raises(ActorStopped, match="has stopped and cannot have the child"):
                self.context.spawn(lambda: Scripted([]), "late")
            self.log.append("refused")

    async def never() -> None:
        raise AssertionError("this task must not run")

    log: list[str] = []
    actor = Late(log)
    ref = system.spawn(lambda: actor, "actor")
    system.stop(ref)
    assert await system.stopped(ref) == "normal"
    assert log == ["actor started", "refused"]
    await actor.stopped()
    assert log == ["actor started", "refused", "refused"]
    assert not system._cells


# -- children -----------------------------------------------------------------------------------------------------


def parent_of(
    log: list[str], refs: list[ActorRef], restart: Restart = Restart.PERMANENT, names: tuple[str, ...] = ("child",)
) -> Callable[[], Scripted]:
    async def spawn_children(actor: Scripted) -> None:
        refs[:] = [actor.context.spawn(child_of(log, name), name, restart) for name in names]

    return lambda: Scripted(log, "parent", spawn_children)


def child_of(log: list[str], name: str) -> Callable[[], Scripted]:
    return lambda: Scripted(log, name)


async def test_children_stop_before_their_parent_does(system: ActorSystem) -> None:
    log: list[str] = []
    ref = system.spawn(parent_of(log, [], names=("one", "two")), "parent")
    await system.ask(ref, Run(nothing), 1.0)
    system.stop(ref)
    assert await system.stopped(ref) == "normal"
    assert sorted(log[3:5]) == ["one stopped", "two stopped"]
    assert log[5:] == ["parent stopped"]
    assert not system._cells


async def test_a_restart_of_the_parent_begins_with_fresh_children(system: ActorSystem) -> None:
    log: list[str] = []
    children: list[ActorRef] = []
    ref = system.spawn(parent_of(log, children), "parent")
    await system.ask(ref, Run(nothing), 1.0)
    old = children[0]
    system.tell(ref, Run(crash))
    await system.ask(ref, Run(nothing), 5.0)
    new = children[0]
    await system.ask(new, Run(nothing), 1.0)
    assert log == [
        "parent started",
        "child started",
        "child stopped",
        "parent stopped",
        "parent started",
        "child started",
    ]
    assert new.path == old.path == "/parent/child"
    assert new.incarnation != old.incarnation


@pytest.mark.parametrize("restart", [Restart.PERMANENT, Restart.TRANSIENT])
async def test_a_child_beyond_repair_is_its_parents_failure(system: ActorSystem, restart: Restart) -> None:
    log: list[str] = []
    children: list[ActorRef] = []
    ref = system.spawn(parent_of(log, children, restart), "parent")
    await system.ask(ref, Run(nothing), 1.0)
    child = children[0]
    for _ in range(4):
        system.tell(child, Run(crash))
    assert await system.stopped(child) == "failed"
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    assert children[0].incarnation != child.incarnation
    assert await system.ask(children[0], Run(nothing), 5.0)


async def test_a_temporary_child_that_fails_leaves_its_parent_alone(system: ActorSystem) -> None:
    log: list[str] = []
    children: list[ActorRef] = []
    ref = system.spawn(parent_of(log, children, Restart.TEMPORARY), "parent")
    await system.ask(ref, Run(nothing), 1.0)
    system.tell(children[0], Run(crash))
    assert await system.stopped(children[0]) == "failed"
    await asyncio.sleep(5)
    assert await system.ask(ref, Run(nothing), 1.0) == Ran(1)


async def test_a_child_that_fails_while_its_parent_restarts_does_not_end_the_parent(system: ActorSystem) -> None:
    log: list[str] = []

    async def spawn_child(actor: Scripted) -> None:
        child = Scripted(log, "child")
        child.fail_in_stopped = True
        actor.context.spawn(lambda: child, "child")

    ref = system.spawn(lambda: Scripted(log, "parent", spawn_child), "parent")
    system.tell(ref, Run(crash))
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)
    await asyncio.sleep(5)
    assert await system.ask(ref, Run(nothing), 5.0) == Ran(2)


async def test_failures_that_no_parent_survives_reach_the_top() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []

    async def spawn_hopeless(actor: Scripted) -> None:
        actor.context.spawn(lambda: Scripted(log, "child", crash), "child")

    ref = system.spawn(lambda: Scripted(log, "parent", spawn_hopeless), "parent")
    assert await system.stopped(ref) == "failed"
    assert log.count("parent started") == 4
    assert log.count("child started") == 16
    assert len(lost) == 1
    assert "here/parent failed beyond" in str(lost[0])
    assert "here/parent/child failed beyond" in str(lost[0])
    await system.shut_down(1.0)


async def test_a_stop_while_waiting_for_a_restart_is_a_normal_end_and_no_escalation() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    ref = system.spawn(lambda: Scripted(log), "actor")
    with pytest.raises(RemoteFailure):
        await system.ask(ref, Run(crash), 1.0)
    system.stop(ref)
    with pytest.raises(ActorStopped):
        system.tell(ref, note("too late"))
    assert await system.stopped(ref) == "normal"
    assert log == ["actor started", "actor stopped"]
    assert not lost
    await system.shut_down(1.0)
