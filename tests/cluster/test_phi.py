from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster.lag import OwnLag
from runtime.cluster.phi import HIGHEST, Gaps, phi


@pytest.mark.parametrize(("deviations", "expected"), [(0, 0.301), (1.2816, 1), (2.3263, 2), (5.6120, 8)])
def test_phi_is_the_decimal_logarithm_of_the_chance_of_a_longer_gap(deviations: float, expected: float) -> None:
    """The quantiles are those of the normal distribution."""
    assert phi(3 + deviations * 0.2, 3, 0.2) == pytest.approx(expected, abs=1e-3)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 100), st.floats(0.01, 100))
def test_phi_grows_with_silence_and_stays_finite(one: float, other: float, mean: float, deviation: float) -> None:
    low, high = (phi(silence, mean, deviation) for silence in sorted((one, other)))
    assert 0 <= low <= high <= HIGHEST


@given(st.lists(st.floats(0, 100), min_size=5, max_size=30))
def test_gaps_have_the_mean_and_deviation_of_the_last_ones(gaps: list[float]) -> None:
    kept = Gaps(0.5, window=5)
    for gap in gaps:
        kept.add(gap)
    last = gaps[-5:]
    mean = sum(last) / 5
    assert kept.mean == pytest.approx(mean)
    assert kept.deviation == pytest.approx(math.sqrt(sum((gap - mean) ** 2 for gap in last) / 5), abs=1e-6)


@given(st.lists(st.floats(0, 30), max_size=30))
def test_all_time_is_either_listened_to_or_late(gaps: list[float]) -> None:
    lag = OwnLag(0.5, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        listened, late = lag.tick(now)
        assert listened + late == pytest.approx(gap, abs=1e-9)
        assert 0 <= listened <= 1
        assert (late > 0) == (listened == 0.5 and gap > 1) or gap == pytest.approx(1)


def test_a_clock_that_goes_back_makes_nothing_late() -> None:
    lag = OwnLag(0.5, 10.0)
    assert lag.tick(5.0) == (0.0, 0.0)
    assert lag.tick(10.5) == (0.5, 0.0)
