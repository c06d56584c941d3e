from __future__ import annotations

import asyncio

import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Request
from runtime.errors import AskCycle, AskTimeout
from tests.actors.network import Network, settle


class Done(Message, frozen=True, tag="test.cycle.done"):
    pass


class Pass(Request[Done], frozen=True, tag="test.cycle.pass"):
    """Is passed on along the path; the last one answers."""

    path: tuple[ActorRef, ...] = ()
    how: str = ""


class Node(Actor):
    def __init__(self) -> None:
        self.passing = 0

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Pass)
        if not message.path:
            return Done()
        work = self.context.ask(message.path[0], Pass(message.path[1:], message.how), 60.0)
        match message.how:
            case "task":
                reply = self.context.reply_later()

                async def answer() -> None:
                    try:
                        reply.answer(await work)
                    except AskCycle as fault:
                        reply.fail(fault)

                self.context.start_task(answer(), "answer", reply)
                return None
            case "gather":
                return (await asyncio.gather(work, asyncio.sleep(0)))[0]
            case _:
                return await work


@pytest.fixture
async def network() -> Network:
    return Network("a", "b")


def spawn(network: Network, *names: str) -> list[ActorRef]:
    return [network.systems[name[0]].spawn(Node, name) for name in names]


@pytest.mark.parametrize("how", ["", "gather"])
async def test_an_actor_that_asks_itself_is_told_at_once(network: Network, how: str) -> None:
    (a,) = spawn(network, "a")
    with pytest.raises(AskCycle, match="a/a -> a/a"):
        await network.systems["a"].ask(a, Pass((a,), how), 60.0)
    assert network.systems["a"].now() == 0.0
    await network.shut_down()


@pytest.mark.parametrize("names", [("a1", "a2"), ("a1", "a2", "a3"), ("a1", "b1"), ("a1", "b1", "a2", "b2")])
@pytest.mark.parametrize("how", ["", "gather"])
async def test_a_cycle_is_refused_at_once_and_named_also_across_nodes(
    network: Network, names: tuple[str, ...], how: str
) -> None:
    refs = spawn(network, *names)
    asking = asyncio.create_task(network.systems["a"].ask(refs[0], Pass((*refs[1:], refs[0]), how), 60.0))
    await settle()
    cycle = " -> ".join(f"{name[0]}/{name}" for name in (*names, names[0]))
    with pytest.raises(AskCycle, match=cycle):
        await asking
    assert network.systems["a"].now() < 0.1
    await settle()
    network.assert_nothing_kept()
    await network.shut_down()


async def test_only_the_part_of_the_chain_that_is_the_cycle_is_named(network: Network) -> None:
    first, second, third = spawn(network, "a1", "b1", "a2")
    with pytest.raises(AskCycle) as caught:
        await network.systems["a"].ask(first, Pass((second, third, second)), 60.0)
    assert "b/b1 -> a/a2 -> b/b1" in caught.value.message
    assert "a/a1" not in caught.value.message
    await network.shut_down()


async def test_actors_that_asked_before_and_wait_no_longer_may_be_asked(network: Network) -> None:
    first, second = spawn(network, "a1", "b1")
    for _ in range(2):
        assert await network.systems["a"].ask(first, Pass((second,)), 1.0) == Done()
        assert await network.systems["b"].ask(second, Pass((first,)), 1.0) == Done()
    await network.shut_down()


async def test_an_actor_whose_task_asks_is_not_held_up_and_may_be_asked(network: Network) -> None:
    first, second = spawn(network, "a1", "b1")
    assert await network.systems["a"].ask(first, Pass((second, first), "task"), 1.0) == Done()
    assert await network.systems["a"].ask(first, Pass((first,), "task"), 1.0) == Done()
    await network.shut_down()


class Starter(Node):
    """Asks another from a task that works for the reply, while its asker is held up."""

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Pass)
        return await super().receive(Pass(message.path, "task"))


async def test_a_task_that_works_for_a_reply_cannot_ask_who_waits_for_it(network: Network) -> None:
    (held,) = spawn(network, "a1")
    starter = network.systems["b"].spawn(Starter, "b1")
    with pytest.raises(AskCycle, match="a/a1 -> a/a1"):
        await network.systems["a"].ask(held, Pass((starter, held)), 60.0)
    assert network.systems["a"].now() < 0.1
    await network.shut_down()


class Twin(Actor):
    """Asks its twin whenever it is told to."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Pass)
        try:
            await self.context.ask(message.path[0], Pass(), 5.0)
        except AskTimeout as fault:
            self.faults.append(fault)
        return None


async def test_two_actors_that_ask_each_other_of_their_own_accord_are_no_chain_and_time_out(
    system: ActorSystem,
) -> None:
    one, two = Twin(), Twin()
    refs = [system.spawn(lambda: one, "one"), system.spawn(lambda: two, "two")]
    system.tell(refs[0], Pass((refs[1],)))
    system.tell(refs[1], Pass((refs[0],)))
    await asyncio.sleep(10.0)
    assert len(one.faults) == len(two.faults) == 1
