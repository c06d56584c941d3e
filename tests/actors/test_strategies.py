"""What becomes of the siblings of an actor that fails."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Request, Restart, Strategy, Supervision
from runtime.actors.supervisor import GRACE
from runtime.errors import ActorStopped


class Said(Message, frozen=True, tag="test.strategy.said"):
    word: str


class Do(Request[Said], frozen=True, tag="test.strategy.do"):
    what: str = ""


class Child(Actor):
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    async def started(self) -> None:
        self.log.append(f"+{self.name}")

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        match message.what:
            case "crash":
                raise ValueError(f"{self.name} crashed")
            case "leave":
                self.context.stop_self()
            case "hang":
                await asyncio.Event().wait()
        return Said(self.name)

    async def stopped(self) -> None:
        self.log.append(f"-{self.name}")


class Parent(Actor):
    def __init__(
        self, log: list[str], refs: dict[str, ActorRef], supervision: Supervision, kinds: dict[str, Restart]
    ) -> None:
        self.log = log
        self.refs = refs
        self.supervision = supervision
        self.kinds = kinds

    async def started(self) -> None:
        self.log.append("+parent")
        for name, restart in self.kinds.items():
            self.refs[name] = self.context.spawn(partial(Child, self.log, name), name, restart)

    async def receive(self, message: Message) -> Message | None:
        await asyncio.Event().wait()
        return None

    async def stopped(self) -> None:
        self.log.append("-parent")


class Family:
    """A parent and its children a, b, c."""

    def __init__(self, system: ActorSystem, strategy: Strategy, *, intensity: int = 3, **kinds: Restart) -> None:
        self.system = system
        self.log: list[str] = []
        self.refs: dict[str, ActorRef] = {}
        kinds = {"a": Restart.PERMANENT, "b": Restart.PERMANENT, "c": Restart.PERMANENT, **kinds}
        supervision = Supervision(strategy, intensity=intensity)
        self.ref = system.spawn(lambda: Parent(self.log, self.refs, supervision, kinds), "parent")

    async def settle(self) -> list[str]:
        """Wait for all that follows, and return what happened meanwhile."""
        await asyncio.sleep(2 * GRACE)
        seen = list(self.log)
        self.log.clear()
        return seen

    def do(self, name: str, what: str) -> None:
        self.system.tell(self.refs[name], Do(what))

    async def living(self) -> set[str]:
        """Return the names of those that answer."""
        found = set()
        for name, ref in self.refs.items():
            try:
                found.add((await self.system.ask(ref, Do(), 1.0)).word)
            except ActorStopped:
                assert name not in found
        return found


async def family(system: ActorSystem, strategy: Strategy, *, intensity: int = 3, **kinds: Restart) -> Family:
    made = Family(system, strategy, intensity=intensity, **kinds)
    assert await made.settle() == ["+parent", "+a", "+b", "+c"]
    return made


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, ["-b", "+b"]),
        (Strategy.ONE_FOR_ALL, ["-b", "-c", "-a", "+a", "+b", "+c"]),
        (Strategy.REST_FOR_ONE, ["-b", "-c", "+b", "+c"]),
    ],
)
@pytest.mark.parametrize("what", ["crash", "leave"])
async def test_a_strategy_ends_the_last_first_and_starts_in_order(
    system: ActorSystem, strategy: Strategy, expected: list[str], what: str
) -> None:
    made = await family(system, strategy)
    refs = dict(made.refs)
    made.do("b", what)
    assert await made.settle() == expected
    assert await made.living() == {"a", "b", "c"}
    assert made.refs == refs


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_siblings_that_are_restarted_with_another_keep_their_mailboxes(
    system: ActorSystem, strategy: Strategy
) -> None:
    made = await family(system, strategy)
    made.do("a", "crash")
    asks = [asyncio.create_task(system.ask(made.refs[name], Do(), 5.0)) for name in "abc"]
    assert [(await ask).word for ask in asks] == ["a", "b", "c"]
    assert not system.dead_letters.counts


async def test_a_temporary_sibling_ends_with_the_others_and_stays_away(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL, c=Restart.TEMPORARY)
    made.do("a", "crash")
    assert await made.settle() == ["-a", "-c", "-b", "+a", "+b"]
    assert await made.living() == {"a", "b"}


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_a_child_that_is_done_disturbs_nobody(system: ActorSystem, restart: Restart) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL, b=restart)
    made.do("b", "leave")
    assert await made.settle() == ["-b"]
    assert await made.living() == {"a", "c"}


async def test_a_temporary_child_that_fails_disturbs_nobody(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL, b=Restart.TEMPORARY)
    made.do("b", "crash")
    assert await made.settle() == ["-b"]


async def test_a_stop_that_is_asked_for_disturbs_nobody_and_is_final(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL)
    system.stop(made.refs["b"])
    assert await made.settle() == ["-b"]


async def test_a_sibling_in_the_middle_of_a_message_is_cancelled_after_a_while(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL)
    hanging = asyncio.create_task(system.ask(made.refs["a"], Do("hang"), 600.0))
    await asyncio.sleep(0.1)
    made.do("b", "crash")
    await asyncio.sleep(GRACE / 2)
    assert made.log == ["-b", "-c"]
    assert await made.settle() == ["-b", "-c", "-a", "+a", "+b", "+c"]
    with pytest.raises(ActorStopped, match="was stopped while it handled Do"):
        await hanging
    assert await made.living() == {"a", "b", "c"}


async def test_several_that_fail_at_once_are_restarted_once(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL)
    for name in "abc":
        made.do(name, "crash")
    seen = await made.settle()
    assert sorted(seen) == ["+a", "+b", "+c", "-a", "-b", "-c"]
    assert seen[3:] == ["+a", "+b", "+c"]


async def test_the_children_of_one_parent_share_its_intensity(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ONE)
    for name in "abc":
        made.do(name, "crash")
    assert sorted(await made.settle()) == ["+a", "+b", "+c", "-a", "-b", "-c"]
    made.do("a", "crash")
    seen = await made.settle()
    assert seen[0] == "-a"
    assert sorted(seen[1:3]) == ["-b", "-c"]
    assert seen[3:] == ["-parent", "+parent", "+a", "+b", "+c"]


async def test_an_intensity_of_zero_escalates_at_the_first_failure(system: ActorSystem) -> None:
    made = await family(system, Strategy.REST_FOR_ONE, intensity=0)
    made.do("a", "crash")
    assert await made.settle() == ["-a", "-c", "-b", "-parent", "+parent", "+a", "+b", "+c"]


async def test_a_permanent_actor_that_stops_itself_too_often_escalates() -> None:
    lost: list[Exception] = []
    system = ActorSystem("here", lost.append)
    log: list[str] = []
    ref = system.spawn(partial(Child, log, "top"), "top")
    for _ in range(4):
        assert await system.ask(ref, Do("leave"), 10.0) == Said("top")
    await system.stopped(ref)
    assert log.count("+top") == 4
    assert "here/top failed beyond its restart budget: stopped itself" in str(lost[0])
    await system.shut_down(1.0)


async def test_a_parent_in_the_middle_of_a_message_holds_up_no_restart(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL)
    system.tell(made.ref, Do())
    await asyncio.sleep(0.1)
    made.do("a", "crash")
    assert await made.settle() == ["-a", "-c", "-b", "+a", "+b", "+c"]


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_children_that_depend_on_each_other_are_stopped_one_by_one_the_last_first(
    system: ActorSystem, strategy: Strategy
) -> None:
    made = await family(system, strategy)
    system.stop(made.ref)
    assert await made.settle() == ["-c", "-b", "-a", "-parent"]


async def test_a_stop_of_the_parent_while_its_children_recover_ends_them_all(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ALL)
    asyncio.create_task(system.ask(made.refs["a"], Do("hang"), 600.0)).add_done_callback(lambda task: task.exception())
    await asyncio.sleep(0.1)
    made.do("c", "crash")
    await asyncio.sleep(0.1)
    system.stop(made.ref)
    await asyncio.sleep(GRACE)
    await system.shut_down(1.0)
    assert not system._cells


async def test_the_tree_of_living_actors_can_be_listed(system: ActorSystem) -> None:
    made = await family(system, Strategy.ONE_FOR_ONE)
    made.do("b", "crash")
    await made.settle()
    await made.living()
    made.do("c", "hang")
    made.do("c", "")
    await asyncio.sleep(0.1)
    shown = [
        (each.path, each.parent, each.mailbox, each.handled, each.restarts, each.last_error) for each in system.actors()
    ]
    assert shown == [
        ("/parent", None, 0, 0, 0, None),
        ("/parent/a", "/parent", 0, 1, 0, None),
        ("/parent/b", "/parent", 0, 2, 1, "ValueError('b crashed')"),
        ("/parent/c", "/parent", 1, 2, 0, None),
    ]
    assert [each.age for each in system.actors()] == pytest.approx([system.now()] * 4)


@given(
    strategy=st.sampled_from(list(Strategy)),
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["crash", "leave", "", "wait", "turn"])), max_size=25
    ),
)
async def test_whatever_fails_every_permanent_child_lives_again_and_a_life_is_never_doubled(
    strategy: Strategy, steps: list[tuple[str, str]]
) -> None:
    system = ActorSystem("here", lambda _: None)
    made = Family(system, strategy, intensity=1000)
    await made.settle()
    made.log[:] = ["+a", "+b", "+c"]
    for name, step in steps:
        if step == "turn":
            await asyncio.sleep(0)
        elif step == "wait":
            await asyncio.sleep(0.2)
        else:
            made.do(name, step)
    await asyncio.sleep(200.0)
    assert await made.living() == {"a", "b", "c"}
    for name in "abc":
        lives = [entry[0] for entry in made.log if entry[1:] == name]
        assert lives == ["+", "-"] * (len(lives) // 2) + ["+"]
    await system.shut_down(1.0)
