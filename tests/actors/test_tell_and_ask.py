from __future__ import annotations

import asyncio
from typing import assert_type

import pytest

from runtime.actors import CURRENT, Actor, ActorRef, ActorSystem, Message, Overflow, ReplyTo, Request, Restart
from runtime.actors.cell import TURNS_BEFORE_YIELD
from runtime.errors import ActorError, ActorStopped, AskTimeout, InvalidRequest, MailboxFull, RemoteFailure


class Number(Message, frozen=True, tag="test.ask.number"):
    value: int


class Total(Request[Number], frozen=True, tag="test.ask.total"):
    pass


class Boom(Request[Number], frozen=True, tag="test.ask.boom"):
    pass


class Refuse(Request[Number], frozen=True, tag="test.ask.refuse"):
    pass


class Later(Request[Number], frozen=True, tag="test.ask.later"):
    then: str = ""


class Hold(Message, frozen=True, tag="test.ask.hold"):
    pass


class Counter(Actor):
    """Adds up; ``gate`` holds it in the middle of a message."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.owed: list[ReplyTo] = []
        self.gate = asyncio.Event()
        self.holding = asyncio.Event()
        self.owes = asyncio.Event()

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Number(value):
                self.seen.append(value)
            case Total():
                return Number(sum(self.seen))
            case Boom():
                raise ValueError("boom")
            case Refuse():
                raise InvalidRequest("not this one")
            case Later(then):
                self.owed.append(self.context.reply_later())
                self.owes.set()
                if then == "answered":
                    self.owed[-1].answer(Number(1))
                if then in ("refuse", "answered"):
                    raise InvalidRequest("refused after all")
                if then == "twice":
                    self.context.reply_later()
                return Number(-1)
            case Hold():
                self.holding.set()
                await self.gate.wait()
        return None


class Latest(Counter):
    overflow = Overflow.LATEST


class Small(Counter):
    capacity = 2


async def spawn_held(system: ActorSystem, actor: Counter) -> ActorRef:
    """Start an actor and bring it into the middle of a message, so that what comes next is queued."""
    ref = system.spawn(lambda: actor, "held", restart=Restart.TEMPORARY)
    system.tell(ref, Hold())
    await actor.holding.wait()
    return ref


async def test_messages_of_one_sender_are_handled_in_order(system: ActorSystem) -> None:
    actor = Counter()
    ref = system.spawn(lambda: actor, "counter")
    for value in range(200):
        system.tell(ref, Number(value))
    assert await system.ask(ref, Total(), 1.0) == Number(sum(range(200)))
    assert actor.seen == list(range(200))


async def test_an_ask_has_the_type_of_its_reply(system: ActorSystem) -> None:
    ref = system.spawn(Counter, "counter")
    reply = await system.ask(ref, Total(), 1.0)
    assert_type(reply, Number)
    assert reply == Number(0)


async def test_an_ask_without_a_reply_in_time_is_a_timeout_and_the_request_a_dead_letter(system: ActorSystem) -> None:
    actor = Counter()
    ref = await spawn_held(system, actor)
    before = system.now()
    with pytest.raises(AskTimeout, match=r"here/held did not answer Total within 2.5 s"):
        await system.ask(ref, Total(), 2.5)
    assert system.now() - before == pytest.approx(2.5)
    actor.gate.set()
    assert await system.ask(ref, Total(), 1.0) == Number(0)
    assert system.dead_letters.counts == {"cancelled": 1}


async def test_an_ask_that_its_caller_cancels_leaves_nothing_behind(system: ActorSystem) -> None:
    actor = Counter()
    ref = await spawn_held(system, actor)
    asking = asyncio.create_task(system.ask(ref, Total(), 60.0))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not system._asks.pending
    actor.gate.set()
    await system.ask(ref, Total(), 1.0)
    assert system.dead_letters.counts == {"cancelled": 1}


async def test_a_fault_raised_in_a_request_is_an_answer_and_the_actor_lives_on(system: ActorSystem) -> None:
    actor = Counter()
    ref = system.spawn(lambda: actor, "counter", restart=Restart.TEMPORARY)
    system.tell(ref, Number(3))
    with pytest.raises(InvalidRequest, match="not this one"):
        await system.ask(ref, Refuse(), 1.0)
    assert await system.ask(ref, Total(), 1.0) == Number(3)


async def test_any_other_exception_in_a_request_reaches_the_asker_as_a_remote_failure(system: ActorSystem) -> None:
    ref = system.spawn(Counter, "counter", restart=Restart.TEMPORARY)
    with pytest.raises(RemoteFailure, match=r"here/counter failed on Boom: ValueError\('boom'\)"):
        await system.ask(ref, Boom(), 1.0)
    assert await system.stopped(ref) in ("failed", "noproc")


async def test_a_fault_that_nobody_waits_for_is_a_failure(system: ActorSystem) -> None:
    ref = system.spawn(Counter, "counter", restart=Restart.TEMPORARY)
    system.tell(ref, Refuse())
    assert await system.stopped(ref) == "failed"


async def test_a_reply_can_be_given_later_and_only_the_first_one_counts(system: ActorSystem) -> None:
    actor = Counter()
    ref = system.spawn(lambda: actor, "counter")
    asking = asyncio.create_task(system.ask(ref, Later(), 5.0))
    await actor.owes.wait()
    assert await system.ask(ref, Total(), 1.0) == Number(0)
    assert not asking.done()
    actor.owed[0].answer(Number(7))
    actor.owed[0].answer(Number(8))
    actor.owed[0].fail(InvalidRequest("no"))
    assert await asking == Number(7)
    assert not system.dead_letters.counts


async def test_a_fault_after_the_reply_was_taken_is_still_its_answer(system: ActorSystem) -> None:
    ref = system.spawn(Counter, "counter", restart=Restart.TEMPORARY)
    with pytest.raises(InvalidRequest, match="refused after all"):
        await system.ask(ref, Later("refuse"), 1.0)
    assert await system.ask(ref, Total(), 1.0) == Number(0)


async def test_a_fault_after_the_reply_was_given_is_a_failure_because_nobody_else_would_see_it(
    system: ActorSystem,
) -> None:
    ref = system.spawn(Counter, "counter", restart=Restart.TEMPORARY)
    ended = asyncio.create_task(system.stopped(ref))
    await asyncio.sleep(0)
    assert await system.ask(ref, Later("answered"), 1.0) == Number(1)
    assert await ended == "failed"


async def test_taking_a_reply_twice_is_a_failure(system: ActorSystem) -> None:
    ref = system.spawn(Counter, "counter", restart=Restart.TEMPORARY)
    with pytest.raises(RemoteFailure, match="has taken its reply already"):
        await system.ask(ref, Later("twice"), 1.0)


@pytest.mark.parametrize("end", ["stop", "fail"])
async def test_a_reply_still_owed_at_the_end_of_a_life_is_answered_actor_stopped(system: ActorSystem, end: str) -> None:
    actor = Counter()
    ref = system.spawn(lambda: actor, "counter")
    asking = asyncio.create_task(system.ask(ref, Later(), 60.0))
    await actor.owes.wait()
    if end == "stop":
        system.stop(ref)
    else:
        system.tell(ref, Boom())
    before = system.now()
    with pytest.raises(ActorStopped, match="before it answered"):
        await asking
    assert system.now() == before


async def test_an_answered_reply_is_not_kept(system: ActorSystem) -> None:
    actor = Counter()
    ref = system.spawn(lambda: actor, "counter")
    asking = asyncio.create_task(system.ask(ref, Later(), 5.0))
    await actor.owes.wait()
    cell = system._find(ref)
    assert cell is not None
    assert len(cell.taken or ()) == 1
    actor.owed[0].answer(Number(1))
    await asking
    assert not cell.taken


async def test_what_is_queued_at_a_stopped_actor_is_answered_or_counted(system: ActorSystem) -> None:
    actor = Counter()
    ref = await spawn_held(system, actor)
    asks = [asyncio.create_task(system.ask(ref, Total(), 60.0)) for _ in range(3)]
    await asyncio.sleep(0)
    system.tell(ref, Number(1))
    system.stop(ref)
    actor.gate.set()
    assert await system.stopped(ref) == "normal"
    for ask in asks:
        with pytest.raises(ActorStopped, match="stopped before it handled Total"):
            await ask
    assert system.dead_letters.counts == {"stopped": 1}
    assert actor.seen == []


async def test_a_stop_gets_through_to_an_actor_whose_mailbox_is_full(system: ActorSystem) -> None:
    actor = Small()
    ref = await spawn_held(system, actor)
    system.tell(ref, Number(1))
    system.tell(ref, Number(2))
    system.stop(ref)
    actor.gate.set()
    assert await system.stopped(ref) == "normal"
    assert system.dead_letters.counts == {"stopped": 2}


async def test_a_full_mailbox_names_the_actor_and_the_message(system: ActorSystem) -> None:
    actor = Small()
    ref = await spawn_held(system, actor)
    system.tell(ref, Number(1))
    system.tell(ref, Number(2))
    with pytest.raises(MailboxFull, match="here/held does not take Number"):
        system.tell(ref, Number(3))
    with pytest.raises(MailboxFull, match="here/held does not take Total"):
        await system.ask(ref, Total(), 1.0)
    assert not system._asks.pending
    actor.gate.set()
    await asyncio.sleep(0.001)
    assert actor.seen == [1, 2]


async def test_a_request_that_newer_messages_push_out_is_answered_and_a_message_counted(system: ActorSystem) -> None:
    actor = Latest()
    ref = await spawn_held(system, actor)
    asking = asyncio.create_task(system.ask(ref, Total(), 60.0))
    await asyncio.sleep(0)
    system.tell(ref, Number(1))
    with pytest.raises(ActorStopped, match="newer messages took its place"):
        await asking
    system.tell(ref, Number(2))
    actor.gate.set()
    await asyncio.sleep(0.001)
    assert actor.seen == [2]
    assert system.dead_letters.counts == {"overflow": 2}


async def test_a_message_to_nobody_is_refused(system: ActorSystem) -> None:
    nobody = ActorRef("here", "/nobody")
    with pytest.raises(ActorStopped, match="no actor lives at here/nobody"):
        system.tell(nobody, Number(1))
    with pytest.raises(ActorStopped, match="no actor lives at here/nobody"):
        await system.ask(nobody, Total(), 1.0)
    assert not system._asks.pending


async def test_a_stale_reference_never_reaches_the_next_actor_at_its_path(system: ActorSystem) -> None:
    old = system.spawn(Counter, "counter")
    system.stop(old)
    await system.stopped(old)
    new = system.spawn(Counter, "counter")
    assert new.path == old.path
    assert new.incarnation > old.incarnation
    with pytest.raises(ActorStopped):
        system.tell(old, Number(1))
    with pytest.raises(ActorStopped):
        await system.ask(old, Total(), 1.0)
    system.stop(old)
    system.tell(ActorRef("here", old.path, CURRENT), Number(5))
    assert await system.ask(new, Total(), 1.0) == Number(5)


async def test_a_path_holds_one_actor_at_a_time(system: ActorSystem) -> None:
    system.spawn(Counter, "counter")
    with pytest.raises(ActorError, match="/counter on here already"):
        system.spawn(Counter, "counter")


async def test_a_busy_mailbox_does_not_starve_other_actors(system: ActorSystem) -> None:
    busy, other = Counter(), Counter()
    busy_ref = system.spawn(lambda: busy, "busy")
    other_ref = system.spawn(lambda: other, "other")
    for value in range(1000):
        system.tell(busy_ref, Number(value))
    system.tell(other_ref, Number(1))
    system.tell(other_ref, Hold())
    await other.holding.wait()
    assert other.seen == [1]
    assert len(busy.seen) <= 2 * TURNS_BEFORE_YIELD


# -- waiting for room ---------------------------------------------------------------------------------------------


class Blocking(Small):
    overflow = Overflow.BLOCK


async def full(system: ActorSystem, actor: Counter) -> ActorRef:
    """Start an actor that is in the middle of a message and has a full mailbox."""
    ref = await spawn_held(system, actor)
    for value in (1, 2):
        system.tell(ref, Number(value))
    return ref


async def test_a_send_waits_for_room_where_the_policy_is_to_block(system: ActorSystem) -> None:
    actor = Blocking()
    ref = await full(system, actor)
    sending = asyncio.create_task(system.send(ref, Number(3)))
    await asyncio.sleep(1.0)
    assert not sending.done()
    with pytest.raises(MailboxFull):
        system.tell(ref, Number(4))
    actor.gate.set()
    await sending
    await asyncio.sleep(0.001)
    assert actor.seen == [1, 2, 3]


async def test_an_ask_waits_for_room_within_its_deadline(system: ActorSystem) -> None:
    actor = Blocking()
    ref = await full(system, actor)
    patient = asyncio.create_task(system.ask(ref, Total(), 60.0))
    with pytest.raises(AskTimeout):
        await system.ask(ref, Total(), 1.0)
    actor.gate.set()
    assert await patient == Number(3)
    assert not system.dead_letters.counts


async def test_a_send_to_an_actor_that_refuses_or_drops_does_not_wait(system: ActorSystem) -> None:
    ref = await full(system, Small())
    with pytest.raises(MailboxFull, match="here/held does not take Number"):
        await system.send(ref, Number(3))
    system.stop(ref)


@pytest.mark.parametrize("how", ["stop", "drain"])
async def test_senders_that_wait_for_an_actor_that_ends_are_told(system: ActorSystem, how: str) -> None:
    actor = Blocking()
    ref = await full(system, actor)
    sending = asyncio.create_task(system.send(ref, Number(3)))
    asking = asyncio.create_task(system.ask(ref, Total(), 60.0))
    await asyncio.sleep(0)
    if how == "stop":
        system.stop(ref)
        actor.gate.set()
        with pytest.raises(ActorStopped, match="here/held stopped while Number waited for room"):
            await sending
        with pytest.raises(ActorStopped):
            await asking
    else:
        closing = asyncio.create_task(system.shut_down(60.0))
        await asyncio.sleep(0)
        actor.gate.set()
        await sending
        assert await asking == Number(6)
        await closing


async def test_a_sender_that_is_cancelled_while_it_waits_is_cancelled(system: ActorSystem) -> None:
    actor = Blocking()
    ref = await full(system, actor)
    sending = asyncio.create_task(system.send(ref, Number(3)))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    actor.gate.set()
    await asyncio.sleep(0.001)
    assert actor.seen == [1, 2]


async def test_a_send_after_the_stop_is_refused(system: ActorSystem) -> None:
    ref = system.spawn(Blocking, "counter")
    system.stop(ref)
    with pytest.raises(ActorStopped):
        await system.send(ref, Number(1))
