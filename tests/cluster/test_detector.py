from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster import DetectorSettings, FailureDetector, PeerState
from runtime.cluster.detector import Judgement

SETTINGS = DetectorSettings()
UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN


def run(detector: FailureDetector, start: float, end: float, *, heard: bool = False) -> list[PeerState]:
    """Tick on time; return the transitions. The peer speaks at each tick if it is ``heard``."""
    changes = []
    now = start
    while now < end:
        now += SETTINGS.heartbeat
        if heard:
            detector.heard(now)
        if (change := detector.tick(now).changed) is not None:
            changes.append(change)
    return changes


def suspected(at: float = 10, settings: DetectorSettings = SETTINGS) -> FailureDetector:
    """A detector whose peer was regular and is suspect since just now."""
    detector = FailureDetector(settings, 0)
    run(detector, 0, at - 5, heard=True)
    assert run(detector, at - 5, at) == [SUSPECT]
    return detector


def test_a_silent_peer_is_suspect_and_then_down_and_each_is_told_once() -> None:
    detector = FailureDetector(SETTINGS, 0)
    assert run(detector, 0, 10, heard=True) == []
    assert run(detector, 10, 14) == []
    assert run(detector, 14, 15) == [SUSPECT]
    assert run(detector, 15, 60) == [DOWN]


def test_a_suspicion_asks_for_probes_once_a_round() -> None:
    detector = FailureDetector(SETTINGS, 0)
    judgements = [detector.tick(now / 2) for now in range(1, 30)]
    assert [each for each in judgements if each != Judgement()] == [Judgement(SUSPECT, probe=True), Judgement(DOWN)]


def test_a_suspect_peer_that_is_heard_is_up_again() -> None:
    detector = suspected(10)
    detector.heard(10.1)
    assert run(detector, 10, 13) == [UP]


def test_a_suspect_that_others_reach_is_not_down_and_is_probed_again() -> None:
    detector = suspected(10, DetectorSettings(longest_vouched=30))
    probes = 0
    now = 10.0
    while now < 25:
        now += SETTINGS.heartbeat
        detector.vouch()
        judgement = detector.tick(now)
        assert judgement.changed is None
        probes += judgement.probe
    assert probes == 15 / SETTINGS.probe_timeout
    assert run(detector, 25, 30) == [DOWN]


def test_a_suspect_that_only_others_ever_reach_is_down_in_the_end() -> None:
    detector = suspected(10)
    changes = []
    now = 10.0
    while now < 5 + SETTINGS.longest_vouched + 2:
        now += SETTINGS.heartbeat
        detector.vouch()
        changes.append(detector.tick(now).changed)
    assert [change for change in changes if change] == [DOWN]


def test_vouching_for_a_peer_that_is_not_suspect_gives_it_no_credit() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.vouch()
    assert run(detector, 0, 10) == [SUSPECT, DOWN]


def test_down_is_final() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 20)
    detector.heard(20)
    detector.vouch()
    assert run(detector, 20, 30) == []
    assert detector.state is DOWN


def test_a_peer_that_was_irregular_is_given_more_time_but_not_without_end() -> None:
    regular, irregular = FailureDetector(SETTINGS, 0), FailureDetector(SETTINGS, 0)
    for i in range(1, 200):
        now = i * 0.5
        regular.heard(now)
        if i % 5 < 2:
            irregular.heard(now)
        regular.tick(now)
        irregular.tick(now)
    end = 99.5
    assert irregular.phi(end + 4) < SETTINGS.phi < regular.phi(end + 5)
    assert run(irregular, end, end + SETTINGS.longest_silence + SETTINGS.probe_timeout) == [SUSPECT, DOWN]


def test_a_burst_does_not_teach_that_gaps_are_short() -> None:
    detector = FailureDetector(SETTINGS, 0)
    for i in range(100_000):
        detector.heard(i * 1e-4)
        if i % 5000 == 0:
            detector.tick(i * 1e-4)
    assert run(detector, 10, 12.5) == []


def test_a_node_that_was_held_up_itself_accuses_nobody() -> None:
    detector = FailureDetector(SETTINGS, 0)
    assert run(detector, 0, 2) == []
    assert detector.tick(62) == Judgement()
    assert detector.silence(62) < 3


def test_a_node_that_was_held_up_for_a_moment_judges_only_when_it_has_listened_again() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 10, heard=True)
    run(detector, 10, 13)
    assert detector.tick(16) == Judgement()
    assert detector.silence(16) == 3.5
    assert detector.tick(16.5) == Judgement(SUSPECT, probe=True)
    assert detector.silence(16.5) == 6.5


def test_a_node_that_is_late_again_and_again_still_finds_a_dead_peer() -> None:
    detector = FailureDetector(SETTINGS, 0)
    changes = [detector.tick(now * 2.0).changed for now in range(1, 20)]
    assert [change for change in changes if change] == [SUSPECT, DOWN]


def test_being_held_up_gives_a_suspect_no_less_time_to_be_reached() -> None:
    detector = suspected(10)
    assert detector.tick(70) == Judgement()
    assert run(detector, 70, 72) == [DOWN]


def test_what_is_forgiven_ends_where_the_peer_is_heard_again() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.heard(60)  # read before the late tick
    detector.tick(60)
    assert detector.silence(65) == 5


def test_a_peer_that_is_silent_before_and_after_a_held_up_tick_is_still_found_down() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 3)
    detector.tick(40)
    assert run(detector, 40, 46) == [SUSPECT, DOWN]


def test_an_announced_pause_is_no_silence_and_its_end_starts_the_clock() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.pause(0, 60)
    assert run(detector, 0, 63) == []
    assert run(detector, 63, 70) == [SUSPECT, DOWN]


def test_a_pause_is_cut_to_a_bound_and_can_be_taken_back() -> None:
    detector = FailureDetector(SETTINGS, 0)
    detector.pause(0, 1e9)
    assert detector.silence(SETTINGS.longest_pause + 7) == 7
    detector.pause(10, 0)
    assert detector.silence(16) == 6


def test_a_pause_does_not_teach_that_gaps_are_long() -> None:
    detector = FailureDetector(SETTINGS, 0)
    run(detector, 0, 10, heard=True)
    before = detector.phi(14)
    detector.pause(10, 60)
    run(detector, 10, 40)
    detector.heard(40)
    detector.pause(40, 0)
    assert detector.phi(44) == before


@given(
    silences=st.lists(st.floats(0.01, 3), max_size=40),
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
        assert detector.tick(now) == Judgement()


@given(
    lags=st.lists(st.floats(0, 100), max_size=30),
    spoken=st.lists(st.booleans(), max_size=30),
    pauses=st.lists(st.floats(0, 1000), max_size=30),
)
def test_silence_is_never_judged_longer_than_it_was_nor_negative(
    lags: list[float], spoken: list[bool], pauses: list[float]
) -> None:
    detector = FailureDetector(SETTINGS, 0)
    now = last = 0.0
    for lag, heard, pause in zip(lags, spoken, pauses, strict=False):
        now += SETTINGS.heartbeat + lag
        if heard:
            last = now
            detector.heard(now)
            detector.pause(now, pause)
        detector.tick(now)
        assert 0 <= detector.silence(now) <= now - last
        assert 0 <= detector.phi(now) <= 300


@given(
    gaps=st.lists(st.floats(0.01, 5.4), max_size=60),
    lags=st.lists(st.floats(0, SETTINGS.heartbeat), max_size=20),
)
def test_a_dead_peer_is_found_down_within_eight_seconds_of_on_time_ticks_whatever_its_gaps_were(
    gaps: list[float], lags: list[float]
) -> None:
    detector = FailureDetector(SETTINGS, 0)
    now = spoke = 0.0
    for gap in gaps:
        spoke += gap
        while now + SETTINGS.heartbeat < spoke:
            now += SETTINGS.heartbeat
            detector.tick(now)
        detector.heard(spoke)
    if detector.state is DOWN:
        return
    late = iter(lags)
    while now < spoke + 8:
        now += SETTINGS.heartbeat
        detector.tick(now + next(late, 0.0) / 2)
    assert detector.state is DOWN


@given(st.lists(st.tuples(st.sampled_from(["heard", "vouch", "pause", "silence", "lag"]), st.floats(0, 10))))
def test_a_state_is_told_when_it_changes_and_only_then(events: list[tuple[str, float]]) -> None:
    detector = FailureDetector(SETTINGS, 0)
    now, state = 0.0, UP
    for kind, seconds in events:
        match kind:
            case "heard":
                detector.heard(now)
            case "vouch":
                detector.vouch()
            case "pause":
                detector.pause(now, seconds)
            case _:
                steps = int(seconds / SETTINGS.heartbeat) if kind == "silence" else 1
                for _ in range(steps):
                    now += seconds if kind == "lag" else SETTINGS.heartbeat
                    changed = detector.tick(now).changed
                    assert changed != state
                    assert changed is not DOWN or state is SUSPECT
                    assert state is not DOWN or changed is None
                    state = changed or state
                    assert detector.state is state
