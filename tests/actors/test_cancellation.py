from __future__ import annotations

import asyncio

import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Cancel, DeadLetter, Message, Overflow, ReplyTo, Request
from runtime.errors import ActorStopped, AskTimeout, InvalidRequest, PeerUnreachable
from tests.actors.network import Network, settle


class Done(Message, frozen=True, tag="test.cancel.done"):
    pass


class Work(Request[Done], frozen=True, tag="test.cancel.work"):
    """Works for a minute; ``end`` is what it makes of being cancelled."""

    end: str = ""
    seconds: float = 60.0


class Relay(Request[Done], frozen=True, tag="test.cancel.relay"):
    """Asks another for a minute's work."""

    to: ActorRef


class Later(Request[Done], frozen=True, tag="test.cancel.later"):
    """Is answered by a task."""

    tell: bool = True


class Worker(Actor):
    """Notes when it begins, ends and is cancelled."""

    overflow = Overflow.BLOCK
    capacity = 2

    def __init__(self) -> None:
        self.log: list[str] = []
        self.owed: list[ReplyTo] = []

    async def started(self) -> None:
        self.log.append("started")

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Work(end, seconds):
                await self.work(end, seconds)
            case Relay(to):
                return await self.context.ask(to, Work(), 600.0)
            case Later(tell):
                reply = self.context.reply_later()
                self.owed.append(reply)
                self.context.start_task(self.work("", 60.0), "work", reply if tell else None)
        return Done()

    async def work(self, end: str, seconds: float) -> None:
        self.log.append("begins")
        try:
            await asyncio.sleep(seconds)
            self.log.append("ends")
        except asyncio.CancelledError:
            self.log.append("cancelled")
            if end == "fault":
                raise InvalidRequest("too late") from None
            if end == "swallow":
                return
            if end == "linger":
                await asyncio.sleep(5.0)
                self.log.append("lingered")
            if end == "bug":
                raise ValueError("cannot stop") from None
            raise


def spawn(system: ActorSystem, name: str = "worker") -> tuple[ActorRef, Worker]:
    worker = Worker()
    return system.spawn(lambda: worker, name), worker


async def give_up(system: ActorSystem, ref: ActorRef, request: Request[Done], how: str) -> None:
    """Ask and give up after a second, by the deadline or because the asker is cancelled."""
    if how == "deadline":
        with pytest.raises(AskTimeout):
            await system.ask(ref, request, 1.0)
    else:
        asking = asyncio.create_task(system.ask(ref, request, 600.0))
        await asyncio.sleep(1.0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


ways = pytest.mark.parametrize("how", ["deadline", "cancel"])


@ways
async def test_a_request_that_nobody_waits_for_any_more_is_cancelled_and_the_actor_lives_on(
    system: ActorSystem, how: str
) -> None:
    ref, worker = spawn(system)
    await give_up(system, ref, Work(), how)
    assert await system.ask(ref, Work(seconds=0.5), 1.0) == Done()
    assert worker.log == ["started", "begins", "cancelled", "begins", "ends"]
    assert system.now() == pytest.approx(1.5)
    assert not system.dead_letters.counts


@ways
async def test_a_request_that_still_waits_in_the_mailbox_is_never_handled(system: ActorSystem, how: str) -> None:
    ref, worker = spawn(system)
    letters: list[DeadLetter] = []
    system.dead_letters.subscribe(letters.append)
    first = asyncio.create_task(system.ask(ref, Work(seconds=5.0), 60.0))
    await asyncio.sleep(0.1)
    await give_up(system, ref, Work(seconds=7.0), how)
    await first
    await asyncio.sleep(10.0)
    assert worker.log == ["started", "begins", "ends"]
    assert letters == [DeadLetter(ref, Work(seconds=7.0), "cancelled")]


async def test_a_request_that_gives_up_while_it_waits_for_room_leaves_no_trace(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    asks = [asyncio.create_task(system.ask(ref, Work(seconds=5.0), 60.0)) for _ in range(4)]
    await asyncio.sleep(0.1)
    await give_up(system, ref, Work(seconds=7.0), "deadline")
    await asyncio.gather(*asks)
    await asyncio.sleep(10.0)
    assert worker.log.count("begins") == 4
    assert system.now() == pytest.approx(30.0)


@ways
async def test_a_chain_of_requests_is_cancelled_to_its_end(system: ActorSystem, how: str) -> None:
    target, last = spawn(system, "last")
    middle, _ = spawn(system, "middle")
    await give_up(system, middle, Relay(target), how)
    await settle()
    assert last.log == ["started", "begins", "cancelled"]
    assert not system._asks.pending


@pytest.mark.parametrize(
    ("end", "lives", "letters"),
    [
        ("fault", 1, {"late_reply": 1}),
        ("swallow", 1, {"late_reply": 1}),
        ("linger", 1, {}),
        ("bug", 2, {"late_reply": 1}),
    ],
)
async def test_what_an_actor_makes_of_being_cancelled(
    system: ActorSystem, end: str, lives: int, letters: dict[str, int]
) -> None:
    ref, worker = spawn(system)
    await give_up(system, ref, Work(end), "deadline")
    assert await system.ask(ref, Work(seconds=0.0), 30.0) == Done()
    assert worker.log.count("started") == lives
    assert system.dead_letters.counts == letters


async def test_a_stop_that_cuts_in_on_a_request_being_left_off_is_still_a_stop(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    asking = asyncio.create_task(system.ask(ref, Work("linger"), 1.0))
    await asyncio.sleep(2.0)
    ended = asyncio.create_task(system.stopped(ref))
    await system.shut_down(0.5)
    assert await ended == "killed"
    assert "lingered" not in worker.log
    with pytest.raises(AskTimeout):
        await asking


async def test_a_task_that_works_for_a_reply_is_cancelled_with_it(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    await give_up(system, ref, Later(), "deadline")
    await settle()
    assert worker.log == ["started", "begins", "cancelled"]
    assert not worker.owed[0].is_open
    worker.owed[0].answer(Done())
    assert system.dead_letters.counts == {"late_reply": 1}


async def test_a_task_that_works_for_nobody_in_particular_goes_on(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    await give_up(system, ref, Later(tell=False), "deadline")
    await asyncio.sleep(100.0)
    assert worker.log == ["started", "begins", "ends"]


async def test_an_answered_request_is_not_cancelled_afterwards(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    asking = asyncio.create_task(system.ask(ref, Later(), 60.0))
    await asyncio.sleep(1.0)
    worker.owed[0].answer(Done())
    assert await asking == Done()
    await asyncio.sleep(100.0)
    assert worker.log == ["started", "begins", "ends"]


# -- between nodes ------------------------------------------------------------------------------------------------


@ways
async def test_a_cancellation_crosses_to_the_callees_node(how: str) -> None:
    network = Network("a", "b")
    a, b = network.systems["a"], network.systems["b"]
    ref, worker = spawn(b)
    await give_up(a, ref, Work(), how)
    await settle()
    assert worker.log == ["started", "begins", "cancelled"]
    assert [type(signal) for signal, _ in network.sent].count(Cancel) == 1
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_cancellation_crosses_twice() -> None:
    network = Network("a", "b", "c")
    ref, worker = spawn(network.systems["c"])
    middle, _ = spawn(network.systems["b"])
    await give_up(network.systems["a"], middle, Relay(ref), "deadline")
    await settle()
    assert worker.log == ["started", "begins", "cancelled"]
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_request_that_is_answered_is_not_cancelled() -> None:
    network = Network("a", "b")
    ref, _ = spawn(network.systems["b"])
    assert await network.systems["a"].ask(ref, Work(seconds=1.0), 5.0) == Done()
    assert Cancel not in [type(signal) for signal, _ in network.sent]
    await network.shut_down()


async def test_the_loss_of_the_askers_node_cancels_what_it_asked() -> None:
    network = Network("a", "b")
    ref, worker = spawn(network.systems["b"])
    asking = asyncio.create_task(network.systems["a"].ask(ref, Work(), 600.0))
    await asyncio.sleep(1.0)
    network.cut()
    with pytest.raises(PeerUnreachable):
        await asking
    await settle()
    assert worker.log == ["started", "begins", "cancelled"]
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_cancel_for_what_is_not_known_here_does_nothing(system: ActorSystem) -> None:
    ref, worker = spawn(system)
    asking = asyncio.create_task(system.ask(ref, Work(seconds=1.0), 5.0))
    await asyncio.sleep(0)
    for number in list(system._asks.pending):
        system.deliver("elsewhere", Cancel(number))
    assert await asking == Done()
    assert worker.log == ["started", "begins", "ends"]


async def test_what_is_left_off_at_a_stop_is_told_once(system: ActorSystem) -> None:
    ref, _ = spawn(system)
    first = asyncio.create_task(system.ask(ref, Work(seconds=5.0), 60.0))
    await asyncio.sleep(0.1)
    await give_up(system, ref, Work(seconds=7.0), "deadline")
    system.stop(ref)
    assert await first == Done()
    with pytest.raises(ActorStopped):
        await system.ask(ref, Work(), 1.0)
    assert system.dead_letters.counts == {"cancelled": 1}
