"""A few seeds of what ``python -m benchmarks.reliability`` runs by the thousand."""

from __future__ import annotations

import pytest

from benchmarks.chaos.scenarios import LOSSES, WITHOUT_EVENTS, play
from benchmarks.reliability import DETECTION_AIM, TRANSITIONS_AIM, outcome, summarise
from runtime.cluster import DetectorSettings
from runtime.testing.simulation import NodeSettings, simulate

SEEDS = range(10)


@pytest.mark.parametrize("scenario", WITHOUT_EVENTS)
def test_nobody_is_called_down_who_is_not(scenario: str) -> None:
    row = summarise(scenario, [outcome(scenario, seed) for seed in SEEDS])
    assert row.failed == ()
    assert row.false_downs == 0


@pytest.mark.parametrize("scenario", LOSSES)
def test_a_loss_is_noticed_in_time_and_told_once_and_so_is_a_return(scenario: str) -> None:
    row = summarise(scenario, [outcome(scenario, seed) for seed in SEEDS])
    assert row.failed == ()
    assert row.false_downs == 0
    assert row.most_transitions == TRANSITIONS_AIM
    assert row.detection_p99 is not None
    assert row.detection_p99 <= DETECTION_AIM


@pytest.mark.parametrize("scenario", ["a 2 s stall of each node every 10 s", "5 % loss with 300 ms jitter"])
def test_an_impatient_detector_fails_the_same_measure(scenario: str) -> None:
    impatient = NodeSettings(
        detector=DetectorSettings(
            acceptable_pause=0.0, least_deviation=0.02, longest_silence=0.7, probes=0, probe_timeout=0.05
        )
    )
    played = [simulate(play(scenario, seed, settings=impatient))[0] for seed in range(3)]
    assert sum(one.false_downs for one in played) > 0
