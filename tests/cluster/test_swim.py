from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cluster.detector import PeerState
from runtime.cluster.gossip import Update
from runtime.cluster.liveness import Effects, Ping, PingRequest, Pong
from runtime.cluster.swim import Swim
from tests.cluster.virtual import BOOT, SETTINGS, VirtualCluster, Weather, downs, quantile, states, swim

UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN
SEEDS = st.integers(0, 2**32)
ROUGH = Weather(jitter=0.3, loss=0.05)


def core(*peers: str, node: str = "a") -> Swim:
    made = Swim(node, BOOT, SETTINGS, random.Random(1), 0.0)  # noqa: S311 - to be repeated
    for peer in peers:
        made.add(peer, BOOT, 0.0)
    return made


def ping(sender: str, *updates: Update, pause: float = 0.0) -> Ping:
    return Ping(sender, BOOT, 0.0, sender, pause, updates)


def told(effects: Effects, node: str) -> list[Update]:
    """What the messages say of a node."""
    updates = [
        update
        for _, message in effects.sends
        if isinstance(message, Ping | Pong | PingRequest)
        for update in message.updates
    ]
    return [update for update in updates if update.node == node]


def tick_until(made: Swim, start: float, end: float, heard: tuple[str, ...] = ()) -> list[Effects]:
    """Tick on time, hearing these peers all the while."""
    effects = []
    now = start
    while now < end:
        now += SETTINGS.heartbeat
        for peer in heard:
            made.heard(peer, now)
        effects.append(made.tick(now))
    return effects


def test_a_thousand_nodes_notice_a_crash_in_seconds_with_a_load_that_does_not_grow() -> None:
    load: dict[int, float] = {}
    for size in (17, 1000):
        cluster = VirtualCluster(swim, size, ROUGH, seed=size)
        cluster.run(3)
        cluster.crashed.add("n0")
        seen = [each for each in cluster.run(10) if each.subject == "n0"]
        took = [each.at - 3 for each in downs(seen)]
        assert len(took) == size - 1
        assert quantile(took, 0.99) <= 9
        histories: dict[str, list[PeerState]] = {}
        for each in seen:
            histories.setdefault(each.observer, []).append(each.state)
        # Some hear of the end before they hear of the suspicion.
        assert all(history in ([SUSPECT, DOWN], [DOWN]) for history in histories.values())
        assert {each.subject for each in downs(cluster.seen)} == {"n0"}
        load[size] = sum(cluster.sent.values()) / size / cluster.now
    # Two pings and two answers a second, and what goes through others when something is lost.
    assert 4 <= load[17] <= 9
    assert load[1000] <= 1.5 * load[17]


@pytest.mark.parametrize(
    "weather",
    [
        pytest.param(Weather(stall=2), id="a stall of 2 s every 10 s"),
        pytest.param(ROUGH, id="jitter of 300 ms and 5 % loss"),
        pytest.param(Weather(late=2), id="own ticks up to 2 s late"),
        pytest.param(Weather(jitter=0.3, loss=0.05, stall=2, late=0.5), id="all of it"),
    ],
)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_nobody_who_lives_is_declared_down(weather: Weather, seed: int) -> None:
    cluster = VirtualCluster(swim, 30, weather, seed)
    assert downs(cluster.run(60)) == []


def test_two_hundred_nodes_that_all_stall_in_rough_weather_declare_nobody_down() -> None:
    cluster = VirtualCluster(swim, 200, Weather(jitter=0.3, loss=0.05, stall=2), seed=3)
    assert downs(cluster.run(60)) == []


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, stall=st.floats(3.5, 4.2))
def test_a_node_that_is_suspect_after_a_stall_denies_it_and_is_up_again(seed: int, stall: float) -> None:
    cluster = VirtualCluster(swim, 20, Weather(), seed)
    cluster.run(5)
    cluster.stalled_until["n0"] = cluster.now + stall
    seen = cluster.run(20)
    assert {each.subject for each in seen} <= {"n0"}
    for name in cluster.nodes:
        assert states(seen, name, "n0") in ([], [SUSPECT, UP])


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_one_link_that_is_broken_makes_nobody_suspect(seed: int) -> None:
    cluster = VirtualCluster(swim, 20, Weather(), seed)
    cluster.blocked |= {("n0", "n1"), ("n1", "n0")}
    assert cluster.run(60) == []


def test_a_member_that_does_not_answer_is_pinged_by_others_before_it_is_suspect() -> None:
    made = core("b", "c", "d", "e", "f")
    effects = tick_until(made, 0, 12, heard=("c", "d", "e", "f"))
    first = next(i for i, each in enumerate(effects) if each.changes)
    asked = {to for each in effects[:first] for to, message in each.sends if isinstance(message, PingRequest)}
    assert len(asked) == SETTINGS.probes
    changes = [change for each in effects for change in each.changes]
    assert [(change.node, change.state) for change in changes] == [("b", SUSPECT), ("b", DOWN)]
    assert changes[1].reason == (
        f"no answer to a ping for 3.0 s; {', '.join(sorted(asked))} could not reach it either; "
        "suspect for 2.0 s, and not denied"
    )


def test_an_accused_denies_with_a_higher_incarnation_and_is_believed() -> None:
    accused, other = core("b"), core("a", node="b")
    other.receive(ping("a", Update("a", SUSPECT, BOOT)), 0.0)
    effects = accused.receive(ping("b", Update("a", SUSPECT, BOOT)), 0.0)
    (denial,) = told(effects, "a")
    assert denial == Update("a", UP, BOOT + 1)
    ((_, pong),) = effects.sends
    assert isinstance(pong, Pong)
    changes = other.receive(pong, 0.1).changes
    assert [(change.node, change.state) for change in changes] in ([("a", UP)], [])


def test_an_accuser_that_missed_the_denial_is_told_it_again() -> None:
    accused = core("b", "c")
    accused.receive(ping("b", Update("a", SUSPECT, BOOT)), 0.0)
    while told(accused.receive(ping("b"), 0.1), "a"):
        pass
    assert told(accused.receive(ping("c", Update("a", SUSPECT, BOOT)), 0.2), "a") == [Update("a", UP, BOOT + 1)]


def test_what_is_held_against_a_member_is_told_to_it_at_every_occasion() -> None:
    made = core("b", "c")
    made.receive(ping("c", Update("b", SUSPECT, BOOT)), 5.0)
    for _ in range(50):
        assert Update("b", SUSPECT, BOOT) in told(made.receive(ping("b"), 5.0), "b")


@pytest.mark.parametrize("late", [Update("b", UP, BOOT), Update("b", UP, BOOT - 5), Update("b", SUSPECT, BOOT)])
def test_a_member_that_is_down_is_up_again_only_with_a_higher_incarnation(late: Update) -> None:
    made = core("b", "c")
    assert [change.state for change in made.receive(ping("c", Update("b", DOWN, BOOT)), 10.0).changes] == [DOWN]
    assert made.receive(ping("c", late), 10.1).changes == []
    made.heard("b", 10.2)
    assert made.receive(ping("b"), 10.2).changes == []
    assert [change.state for change in made.receive(ping("c", Update("b", UP, BOOT + 1)), 10.3).changes] == [UP]


def test_a_member_that_is_heard_is_not_down_because_others_say_so() -> None:
    made = core("b", "c")
    made.heard("b", 9.5)
    changes = made.receive(ping("c", Update("b", DOWN, BOOT)), 10.0).changes
    assert [change.state for change in changes] == [SUSPECT]
    assert not [change for each in tick_until(made, 10, 30, heard=("b", "c")) for change in each.changes]


def test_an_old_rumour_does_not_end_a_new_session_and_the_member_gets_to_deny_it() -> None:
    made = core("b", "c")
    made.receive(ping("c", Update("b", DOWN, BOOT)), 10.0)
    made.remove("b")
    made.add("b", BOOT, 11.0)
    assert made.receive(ping("c", Update("b", DOWN, BOOT)), 11.1).changes == []
    assert Update("b", DOWN, BOOT) in told(made.receive(ping("b"), 11.2), "b")
    assert made.receive(ping("b", Update("b", UP, BOOT + 1)), 11.3).changes == []
    assert told(made.receive(ping("b"), 11.4), "b")[:1] != [Update("b", DOWN, BOOT)]


def test_a_later_life_is_not_haunted_by_the_end_of_the_one_before() -> None:
    made = core("b", "c")
    made.receive(ping("c", Update("b", DOWN, BOOT + 3)), 10.0)
    made.remove("b")
    made.add("b", BOOT + 1000, 11.0)
    assert made.receive(ping("c", Update("b", DOWN, BOOT + 3)), 11.1).changes == []
    assert told(made.receive(ping("b"), 11.2), "b") == []


def test_a_member_that_announced_a_pause_is_not_suspected_before_its_end_by_those_who_heard_it_from_others() -> None:
    made = core("b", "c")
    announcing = core("a", node="b")
    effects = announcing.pausing(60, 0.0)
    (update,) = told(effects, "b")
    made.receive(ping("c", update), 0.0)
    assert not [change for each in tick_until(made, 0, 59, heard=("c",)) for change in each.changes]
    changes = [change.state for each in tick_until(made, 59, 70, heard=("c",)) for change in each.changes]
    assert changes == [SUSPECT, DOWN]


def test_a_pause_that_is_taken_back_ends() -> None:
    made = core("b", "c")
    announcing = core("a", node="b")
    for seconds in (60, 0):
        made.receive(ping("c", *told(announcing.pausing(seconds, 0.0), "b")), 0.0)
    assert [change.state for each in tick_until(made, 0, 12, heard=("c",)) for change in each.changes] == [
        SUSPECT,
        DOWN,
    ]


def test_a_frame_that_came_after_a_ping_is_its_answer() -> None:
    made = core("b")
    assert not [change for each in tick_until(made, 0, 30, heard=("b",)) for change in each.changes]


def test_strangers_are_neither_members_nor_pinged_for_nor_passed_on_to() -> None:
    made = core("b")
    effects = made.receive(ping("stranger", Update("other", DOWN, 1)), 1.0)
    assert [to for to, _ in effects.sends] == ["stranger"]
    assert effects.changes == []
    assert made.receive(PingRequest("b", 1.0, "stranger"), 1.0).sends == []
    assert made.receive(Pong("b", 1.0, "stranger"), 1.0).sends == []
    assert {to for each in tick_until(made, 1, 10, heard=("b",)) for to, _ in each.sends} == {"b"}
