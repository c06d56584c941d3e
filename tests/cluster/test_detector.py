from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster import DetectorSettings, FailureDetector, PeerState

SETTINGS = DetectorSettings()


def run(detector: FailureDetector, start: float, end: float) -> list[PeerState]:
    """Tick on time; return the transitions."""
    changes = []
    now = start
    while now < end:
        now += SETTINGS.heartbeat
        if (change := detector.tick(now)) is not None:
            changes.append(change)
    return changes


def test_a_silent_peer_is_suspect_and_then_down_and_each_is_told_once() -> None:
    detector = FailureDetector(SETTINGS, 0)
    assert run(detector, 0, 4.5) == []
    assert run(detector, 4.5, 14.5) == [PeerState.SUSPECT]
    assert run(detector, 14.5, 60) == [PeerState.DOWN]
    assert detector.state is PeerState.DOWN


def test_a_suspect_peer_that_is_heard_is_up_again() -> None:
    detector = FailureDetector(SETTINGS, 0)
    assert run(detector, 0, 6) == [PeerState.SUSPECT]
    detector.heard(6.1)
    assert run(detector, 6, 9) == [PeerState.UP]


def test_down_is_final() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 20)
    detector.heard(20)
    assert run(detector, 20, 30) == []
    assert detector.state is PeerState.DOWN


def test_a_node_that_was_held_up_itself_accuses_nobody() -> None:
    detector = FailureDetector(SETTINGS, 0)
    assert run(detector, 0, 2) == []
    assert detector.tick(62) is None
    assert detector.silence(62) < SETTINGS.suspect


def test_a_peer_that_is_silent_before_and_after_a_held_up_tick_is_still_found_down() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 3)
    detector.tick(40)
    assert run(detector, 40, 60) == [PeerState.SUSPECT, PeerState.DOWN]


def test_an_announced_pause_is_no_silence_and_its_end_starts_the_clock() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.pause(0, 60)
    assert run(detector, 0, 64) == []
    assert run(detector, 64, 80) == [PeerState.SUSPECT, PeerState.DOWN]


def test_a_pause_is_cut_to_a_bound_and_can_be_taken_back() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.pause(0, 1e9)
    assert detector.silence(SETTINGS.longest_pause + 7) == 7
    detector.pause(10, 0)
    assert detector.silence(16) == 6


@given(
    silences=st.lists(st.floats(0.01, SETTINGS.suspect - 2 * SETTINGS.heartbeat), max_size=40),
    lags=st.lists(st.floats(0, 30), max_size=40),
)
def test_a_peer_that_is_heard_often_enough_is_never_suspected_however_late_our_ticks_are(
    silences: list[float], lags: list[float]
) -> None:
    """Frames come with gaps below the threshold, of a busy bulk lane or of heartbeats; ticks come whenever they can."""
    heard = [0.0]
    for silence in silences:
        heard.append(heard[-1] + silence)
    detector = FailureDetector(SETTINGS, 0)
    now = 0.0
    late = iter(lags)
    while now < heard[-1]:
        now += SETTINGS.heartbeat + next(late, 0.0)
        for at in heard:
            if at <= now:
                detector.heard(at)
        assert detector.tick(now) is None


@given(lags=st.lists(st.floats(0, 100), max_size=30))
def test_silence_is_never_judged_longer_than_it_was_nor_negative(lags: list[float]) -> None:
    detector = FailureDetector(SETTINGS, 0)
    now = 0.0
    for lag in lags:
        now += SETTINGS.heartbeat + lag
        detector.tick(now)
        assert 0 <= detector.silence(now) <= now


@given(lags=st.lists(st.floats(0, SETTINGS.heartbeat), min_size=0, max_size=20))
def test_a_dead_peer_is_found_down_in_bounded_time_when_our_ticks_are_about_on_time(lags: list[float]) -> None:
    detector = FailureDetector(SETTINGS, 0)
    now = 0.0
    for lag in lags:
        now += SETTINGS.heartbeat + lag
        detector.tick(now)
    while now < SETTINGS.down + SETTINGS.heartbeat:
        now += SETTINGS.heartbeat
        detector.tick(now)
    assert detector.state is PeerState.DOWN
