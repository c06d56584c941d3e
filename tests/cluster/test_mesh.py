from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cluster.detector import PeerState
from runtime.cluster.liveness import Ping, PingRequest, Pong
from runtime.cluster.mesh import Mesh
from tests.cluster.virtual import BOOT, SETTINGS, VirtualCluster, Weather, downs, mesh, quantile, states

UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN
SEEDS = st.integers(0, 2**32)
ROUGH = Weather(jitter=0.3, loss=0.05)


def core(*peers: str) -> Mesh:
    made = Mesh("a", BOOT, SETTINGS, random.Random(1))  # noqa: S311 - to be repeated
    for peer in peers:
        made.add(peer, BOOT, 0.0)
    return made


def ticks(made: Mesh, start: float, end: float, heard: str = "") -> list[tuple[str, object]]:
    """Tick on time, hearing the peers of these names; return what is sent but for plain pings."""
    sends: list[tuple[str, object]] = []
    now = start
    while now < end:
        now += SETTINGS.heartbeat
        for peer in heard:
            made.heard(peer, now)
        sends += [each for each in made.tick(now).sends if not isinstance(each[1], Ping)]
    return sends


@pytest.mark.parametrize(
    "weather",
    [
        pytest.param(Weather(stall=2), id="a stall of 2 s every 10 s"),
        pytest.param(ROUGH, id="jitter of 300 ms and 5 % loss"),
        pytest.param(Weather(bulk=0.02), id="long bulk transfers"),
        pytest.param(Weather(late=20), id="own ticks up to 20 s late"),
        pytest.param(Weather(jitter=0.3, loss=0.05, stall=2, late=1), id="all of it"),
    ],
)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, size=st.integers(2, 6))
def test_nobody_who_lives_is_declared_down(weather: Weather, seed: int, size: int) -> None:
    # A node whose own ticks are 20 s late says nothing for so long: nobody else can know that it lives.
    lone = weather.late > 2
    cluster = VirtualCluster(mesh, size, weather if not lone else Weather(), seed)
    if lone:
        chance = random.Random(seed)  # noqa: S311 - to be repeated
        for _ in range(6):
            cluster.run(chance.random() * 20)
            # The whole machine stops, and with it everything that it hosts.
            for name in cluster.nodes:
                cluster.stalled_until[name] = cluster.now + 20
    seen = cluster.run(60)
    assert downs(seen) == []


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_stall_of_two_seconds_does_not_even_make_suspect(seed: int) -> None:
    cluster = VirtualCluster(mesh, 4, Weather(stall=2), seed)
    assert cluster.run(60) == []


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, size=st.integers(2, 6), before=st.floats(1, 30))
def test_a_crash_is_one_suspicion_and_one_down_at_each_survivor_and_nothing_else(
    seed: int, size: int, before: float
) -> None:
    cluster = VirtualCluster(mesh, size, Weather(jitter=0.3), seed)
    cluster.run(before)
    cluster.crashed.add("n0")
    seen = cluster.run(60)
    for name in cluster.nodes:
        assert states(seen, name, "n0") == ([] if name == "n0" else [SUSPECT, DOWN])
    assert {each.subject for each in seen} == {"n0"}


def test_a_crash_is_noticed_within_eight_seconds_in_rough_weather() -> None:
    took: list[float] = []
    for seed in range(100):
        cluster = VirtualCluster(mesh, 4, ROUGH, seed)
        cluster.run(20 + seed / 10)
        cluster.crashed.add("n0")
        crashed = cluster.now
        took += [each.at - crashed for each in downs(cluster.run(20))]
    assert len(took) == 300
    assert quantile(took, 0.99) <= 8
    assert quantile(took, 0.01) > 4


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, stall=st.floats(0.1, 5.5))
def test_a_stall_that_ends_in_time_is_at_most_one_suspicion_that_is_taken_back(seed: int, stall: float) -> None:
    cluster = VirtualCluster(mesh, 4, Weather(jitter=0.1), seed)
    cluster.run(20)
    cluster.stalled_until["n0"] = cluster.now + stall
    seen = cluster.run(40)
    for name in ("n1", "n2", "n3"):
        assert states(seen, name, "n0") in ([], [SUSPECT, UP])
    assert not [each for each in seen if each.observer == "n0" or each.subject != "n0"]


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_peer_that_only_one_node_cannot_hear_is_held_a_little_longer_and_then_its_link_is_given_up(seed: int) -> None:
    cluster = VirtualCluster(mesh, 4, Weather(), seed)
    cluster.run(10)
    cluster.blocked.add(("n0", "n1"))
    seen = cluster.run(8)
    assert states(seen, "n1", "n0") == [SUSPECT]
    seen += cluster.run(3)
    assert states(seen, "n1", "n0") == [SUSPECT, DOWN]
    assert {each.observer for each in seen} == {"n1"}
    reason = seen[-1].reason or ""
    assert "n2" in reason
    assert reason.endswith("could reach it: the link to it is broken")


def test_a_suspect_is_probed_by_others_and_the_reason_of_its_end_names_them() -> None:
    made = core("b", "c", "d", "e", "f")
    assert ticks(made, 0, 5, heard="bcdef") == []
    sends = ticks(made, 5, 10, heard="cdef")
    asked = [to for to, message in sends if isinstance(message, PingRequest) and message.target == "b"]
    assert len(asked) == len(sends) == len(set(asked)) == SETTINGS.probes
    changes = [change for now in range(20, 24) for change in made.tick(now / 2).changes if change.node == "b"]
    assert [change.state for change in changes] == [DOWN]
    assert (changes[0].reason or "").startswith("no sign of life for 6.5 s (φ ")
    assert (changes[0].reason or "").endswith(f"; {', '.join(sorted(asked))} could not reach it either")


def test_a_node_that_is_asked_pings_the_suspect_and_passes_the_answer_on() -> None:
    helper = core("b", "z")
    ((to, ping),) = helper.receive(PingRequest("z", 7.0, "b"), 9.0).sends
    assert to == "b"
    assert isinstance(ping, Ping)
    assert (ping.node, ping.sent, ping.origin) == ("a", 7.0, "z")
    ((to, pong),) = helper.receive(Pong("b", 7.0, "z"), 9.1).sends
    assert (to, pong) == ("z", Pong("b", 7.0, "z", "a"))


def test_an_accused_answers_who_probes_and_tells_the_accuser_itself() -> None:
    accused = core("helper", "accuser")
    sends = accused.receive(Ping("helper", BOOT, 7.0, "accuser"), 9.0).sends
    assert [(to, type(message)) for to, message in sends] == [("helper", Pong), ("accuser", Ping)]


def test_nobody_is_pinged_for_a_stranger_and_a_stranger_is_not_told_of_answers() -> None:
    made = core("b")
    assert made.receive(PingRequest("b", 1.0, "stranger"), 1.0).sends == []
    assert made.receive(Pong("b", 1.0, "stranger"), 1.0).sends == []


def test_a_round_trip_is_measured_by_direct_answers_only_and_never_negative() -> None:
    made = core("b")
    made.receive(Pong("b", 1.0, "a", "c"), 3.0)
    assert made.rtt("b") is None
    made.receive(Pong("b", 5.0, "a"), 3.0)
    assert made.rtt("b") is None
    made.receive(Pong("b", 2.5, "a"), 3.0)
    assert made.rtt("b") == 0.5
    made.receive(Pong("b", 1.7, "a"), 3.3)
    assert made.rtt("b") == pytest.approx(0.5 + 1.1 / 8)


def test_an_announced_pause_travels_with_every_ping_and_ends_with_the_one_that_takes_it_back() -> None:
    node = core("b")
    ((_, first),) = node.pausing(60, 10.0).sends
    ((_, later),) = node.tick(30.0).sends
    ((_, last),) = node.pausing(0, 31.0).sends
    assert isinstance(first, Ping)
    assert isinstance(later, Ping)
    assert isinstance(last, Ping)
    assert (first.pause, later.pause, last.pause) == (60, 40, 0)


def test_what_an_earlier_life_announced_means_nothing_and_nor_does_what_another_passes_on() -> None:
    made = core("b")
    made.receive(Ping("b", BOOT - 1, 0.0, "b", 60), 0.0)
    made.receive(Ping("b", BOOT, 0.0, "c", 60), 0.0)
    assert (made.phi("b", 10.0) or 0) > SETTINGS.phi
    made.receive(Ping("b", BOOT, 0.0, "b", 60), 0.0)
    assert (made.phi("b", 10.0) or 0) < 1


def test_a_peer_that_is_removed_is_neither_judged_nor_pinged() -> None:
    made = core("b")
    made.remove("b")
    assert made.tick(100.0).sends == []
    assert made.phi("b", 100.0) is None
