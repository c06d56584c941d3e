"""Two actor systems joined by a transport that encodes nothing: what crosses nodes, without sockets."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import (
    CURRENT,
    Actor,
    ActorRef,
    ActorSystem,
    Answer,
    Ask,
    Cancel,
    Down,
    Failure,
    Gone,
    Lane,
    Message,
    Overflow,
    Request,
    Restart,
    Watch,
)
from runtime.errors import (
    ActorStopped,
    AskTimeout,
    InvalidRequest,
    MailboxFull,
    PeerUnreachable,
    RemoteFailure,
    RuntimeFault,
    TooLarge,
)
from tests.actors.network import Network, settle


class Word(Message, frozen=True, tag="test.nodes.word"):
    text: str


class Tensor(Message, frozen=True, tag="test.nodes.tensor"):
    lane = Lane.BULK


class Repeat(Request[Word], frozen=True, tag="test.nodes.repeat"):
    text: str


class Fetch(Request[Tensor], frozen=True, tag="test.nodes.fetch"):
    pass


class Provoke(Request[Word], frozen=True, tag="test.nodes.provoke"):
    error: Exception


class Delay(Request[Word], frozen=True, tag="test.nodes.delay"):
    seconds: float


class Echo(Actor):
    """Answers, keeps the words and the downs it hears, and fails when provoked."""

    def __init__(self, heard: list[Message] | None = None) -> None:
        self.heard = [] if heard is None else heard

    async def receive(self, message: Message) -> Message | None:
        match message:
            case Repeat(text):
                return Word(text)
            case Fetch():
                return Tensor()
            case Provoke(error):
                raise error
            case Delay(seconds):
                await asyncio.sleep(seconds)
                return Word("at last")
            case _:
                self.heard.append(message)
        return None


@pytest.fixture
async def network() -> Network:
    return Network("a", "b")


@pytest.fixture
async def a(network: Network) -> ActorSystem:
    return network.systems["a"]


@pytest.fixture
async def b(network: Network) -> ActorSystem:
    return network.systems["b"]


async def test_an_ask_crosses_and_its_reply_comes_back(network: Network, a: ActorSystem, b: ActorSystem) -> None:
    ref = b.spawn(Echo, "echo")
    assert await a.ask(ref, Repeat("hello"), 1.0) == Word("hello")
    ask = network.sent[0][0]
    assert isinstance(ask, Ask)
    assert ask.timeout_ms == 1000
    network.assert_nothing_kept()
    await network.shut_down()


async def test_tells_cross_in_order_on_the_lane_of_their_message(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    heard: list[Message] = []
    ref = b.spawn(lambda: Echo(heard), "echo")
    a.tell(ref, Word("one"))
    a.tell(ref, Tensor())
    a.tell(ref, Word("two"))
    await settle()
    assert heard == [Word("one"), Tensor(), Word("two")]
    assert [lane for _, lane in network.sent] == [Lane.CONTROL, Lane.BULK, Lane.CONTROL]
    await network.shut_down()


async def test_an_answer_travels_on_the_lane_of_its_message_and_a_failure_on_control(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    ref = b.spawn(Echo, "echo")
    assert await a.ask(ref, Fetch(), 1) == Tensor()
    with pytest.raises(RemoteFailure):
        await a.ask(ref, Provoke(ValueError("no")), 1)
    assert await a.ask(ref, Repeat("word"), 1) == Word("word")
    lanes = [(type(signal), lane) for (signal, lane) in network.sent if not isinstance(signal, Ask)]
    assert lanes == [(Answer, Lane.BULK), (Failure, Lane.CONTROL), (Answer, Lane.CONTROL)]
    await network.shut_down()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest("not so"), InvalidRequest),
        (MailboxFull("no room"), MailboxFull),
        (ValueError("a bug"), RemoteFailure),
    ],
)
async def test_a_fault_keeps_its_type_and_text_between_nodes(
    network: Network, a: ActorSystem, b: ActorSystem, error: Exception, expected: type[RuntimeFault]
) -> None:
    ref = b.spawn(Echo, "echo", restart=Restart.TEMPORARY)
    with pytest.raises(expected, match=str(error)):
        await a.ask(ref, Provoke(error), 1.0)
    await network.shut_down()


async def test_a_message_to_nobody_is_a_dead_letter_there_and_a_request_is_refused(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    nobody = ActorRef("b", "/nobody")
    a.tell(nobody, Word("hello"))
    with pytest.raises(ActorStopped, match="no actor lives at b/nobody"):
        await a.ask(nobody, Repeat("hello"), 1.0)
    assert b.dead_letters.counts == {"actor_stopped": 1}
    await network.shut_down()


async def test_a_message_to_a_full_mailbox_is_a_dead_letter_there(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    class Small(Echo):
        capacity = 1
        overflow = Overflow.REJECT

    ref = b.spawn(Small, "small")
    for text in ("one", "two", "three"):
        a.tell(ref, Word(text))
    await settle()
    assert b.dead_letters.counts == {"mailbox_full": 2}
    await network.shut_down()


async def test_the_askers_clock_decides_and_a_late_answer_is_counted(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    ref = b.spawn(Echo, "echo")
    network.refusal[Cancel] = MailboxFull("no room to say that it is over")
    with pytest.raises(AskTimeout):
        await a.ask(ref, Delay(2.0), 1.0)
    await asyncio.sleep(2.0)
    assert a.dead_letters.counts == {"late_reply": 1}
    await network.shut_down()


async def test_an_answer_that_cannot_travel_becomes_the_reason_why(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    ref = b.spawn(Echo, "echo")
    network.refusal[Answer] = TooLarge("a frame holds no such answer")
    with pytest.raises(TooLarge, match="no such answer"):
        await a.ask(ref, Repeat("hello"), 1.0)
    await network.shut_down()


async def test_an_ask_that_cannot_be_sent_fails_at_once(network: Network, a: ActorSystem) -> None:
    network.up = False
    with pytest.raises(PeerUnreachable):
        await a.ask(ActorRef("b", "/echo"), Repeat("hello"), 60.0)
    with pytest.raises(PeerUnreachable):
        a.tell(ActorRef("b", "/echo"), Word("hello"))
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_lost_node_fails_what_was_asked_of_it_at_once(network: Network, a: ActorSystem, b: ActorSystem) -> None:
    ref = b.spawn(Echo, "echo")
    asking = asyncio.create_task(a.ask(ref, Delay(50.0), 60.0))
    await settle()
    network.cut()
    before = a.now()
    with pytest.raises(PeerUnreachable, match="node b was lost while b/echo was asked"):
        await asking
    assert a.now() == before
    await network.shut_down()


async def test_a_lost_node_leaves_what_was_asked_of_others() -> None:
    network = Network("a", "b", "c")
    a = network.systems["a"]
    ref = network.systems["b"].spawn(Echo, "echo")
    asking = asyncio.create_task(a.ask(ref, Delay(1.0), 60.0))
    await settle()
    a.node_lost("c")
    assert await asking == Word("at last")
    await network.shut_down()


async def test_an_answer_from_another_node_or_another_life_of_this_one_is_not_taken(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    ref = b.spawn(Echo, "echo")
    asking = asyncio.create_task(a.ask(ref, Delay(1.0), 60.0))
    await settle()
    ask = network.sent[0][0]
    assert isinstance(ask, Ask)
    a.deliver("c", Answer(ask.id, Word("forged")))
    for former in range(100):
        a.deliver("b", Answer(former, Word("from before the restart")))
    assert await asking == Word("at last")
    assert a.dead_letters.counts == {"late_reply": 101}
    await network.shut_down()


async def test_a_remote_stop_is_one_down(network: Network, a: ActorSystem, b: ActorSystem) -> None:
    heard: list[Message] = []
    watcher = a.spawn(lambda: Echo(heard), "watcher")
    ref = b.spawn(Echo, "echo")
    a.monitor(watcher, ref)
    a.monitor(watcher, ref)
    await settle()
    assert [type(signal) for signal, _ in network.sent] == [Watch]
    b.stop(ref)
    await b.stopped(ref)
    await settle()
    network.cut()
    await settle()
    assert heard == [Down(ref, "normal")]
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_remote_failure_a_missing_actor_and_a_lost_node_are_told_apart(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    heard: list[Message] = []
    watcher = a.spawn(lambda: Echo(heard), "watcher")
    failing = b.spawn(Echo, "failing", restart=Restart.TEMPORARY)
    living = b.spawn(Echo, "living")
    nobody = ActorRef("b", "/nobody")
    by_path = ActorRef("b", "/living", CURRENT)
    for target in (failing, nobody, living, by_path):
        a.monitor(watcher, target)
    await settle()
    b.tell(failing, Provoke(ValueError("crash")))
    await settle()
    assert heard == [Down(nobody, "noproc"), Down(failing, "failed")]
    network.cut()
    a.monitor(watcher, living)
    await settle()
    assert sorted(heard[2:], key=str) == sorted(
        [Down(living, "noconnection"), Down(by_path, "noconnection"), Down(living, "noconnection")], key=str
    )
    network.assert_nothing_kept()
    await network.shut_down()


async def test_the_other_node_hears_once_of_many_watchers_and_when_the_last_one_is_gone(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    ref = b.spawn(Echo, "echo")
    watchers = [a.spawn(Echo, f"watcher{n}") for n in range(3)]
    for watcher in watchers:
        a.monitor(watcher, ref)
    await settle()
    assert [type(signal) for signal, _ in network.sent] == [Watch]
    assert b._monitors.remote == {ref: {"a"}}
    a.demonitor(watchers[0], ref)
    for watcher in watchers[1:]:
        a.stop(watcher)
        await a.stopped(watcher)
    await settle()
    network.assert_nothing_kept()
    await network.shut_down()


async def test_a_node_cannot_announce_the_end_of_anothers_actor(network: Network, a: ActorSystem) -> None:
    heard: list[Message] = []
    watcher = a.spawn(lambda: Echo(heard), "watcher")
    target = a.spawn(Echo, "target")
    a.monitor(watcher, target)
    a.deliver("b", Gone(target, "failed"))
    await settle()
    assert heard == []
    await network.shut_down()


async def test_a_drain_elsewhere_reaches_those_who_watch_and_ask(
    network: Network, a: ActorSystem, b: ActorSystem
) -> None:
    heard: list[Message] = []
    watcher = a.spawn(lambda: Echo(heard), "watcher")
    ref = b.spawn(Echo, "echo")
    a.monitor(watcher, ref)
    asking = asyncio.create_task(a.ask(ref, Delay(100.0), 600.0))
    await settle()
    await b.shut_down(1.0)
    with pytest.raises(ActorStopped, match="was stopped while it handled Delay"):
        await asking
    await settle()
    assert heard == [Down(ref, "killed")]
    await network.shut_down()


Steps = st.lists(
    st.tuples(
        st.sampled_from(["spawn", "stop", "crash", "monitor", "demonitor", "turn", "turn", "settle", "cut", "mend"]),
        st.integers(0, 1),
        st.integers(0, 1),
    ),
    max_size=60,
)


@given(Steps)
async def test_every_monitor_across_nodes_gives_exactly_one_down_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    network = Network("a", "b")
    a, b = network.systems["a"], network.systems["b"]
    heard: list[list[Message]] = [[], []]
    watchers = [a.spawn(partial(Echo, kept), f"watcher{n}") for n, kept in enumerate(heard)]
    latest = [ActorRef("b", f"/target{n}", 1) for n in range(2)]
    # A monitor is open from the call until its Down or its demonitor; asking again meanwhile is the same monitor.
    owed: list[Tally[ActorRef]] = [Tally(), Tally()]
    for step, w, t in steps:
        target = latest[t]
        cell = b._find(target)
        watching = a._cells[f"/watcher{w}"].watching or set()
        match step:
            case "spawn" if f"/target{t}" not in b._cells:
                latest[t] = b.spawn(Echo, f"target{t}", restart=Restart.TEMPORARY)
            case "stop":
                b.stop(target)
            case "crash" if cell is not None and not cell.stopping:
                b.tell(target, Provoke(ValueError("crash")))
            case "monitor":
                owed[w][target] += target not in watching
                a.monitor(watchers[w], target)
            case "demonitor":
                owed[w][target] -= target in watching
                a.demonitor(watchers[w], target)
            case "turn":
                await asyncio.sleep(0)
            case "settle":
                await settle()
            case "cut":
                network.cut()
            case "mend":
                network.up = True
    for target in latest:
        b.stop(target)
        await b.stopped(target)
    await settle()
    for kept, due in zip(heard, owed, strict=True):
        assert Tally(down.ref for down in kept if isinstance(down, Down)) == due
    network.assert_nothing_kept()
    await network.shut_down()
