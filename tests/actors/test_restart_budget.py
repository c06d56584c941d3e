from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import RestartBudget


def test_the_fourth_failure_in_thirty_seconds_is_one_too_many() -> None:
    budget = RestartBudget(seed=1)
    assert [budget.next_delay(now) is None for now in (0.0, 10.0, 20.0, 29.9)] == [False, False, False, True]


def test_failures_older_than_the_period_are_forgiven() -> None:
    budget = RestartBudget(seed=1)
    assert all(budget.next_delay(now) is not None for now in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0))


def test_the_pause_grows_with_each_recent_restart_and_has_jitter() -> None:
    for seed in range(20):
        budget = RestartBudget(intensity=3, base=1.0, seed=seed)
        pauses = [budget.next_delay(0.0) for _ in range(3)]
        for pause, ceiling in zip(pauses, (1.0, 2.0, 4.0), strict=True):
            assert pause is not None
            assert ceiling / 2 <= pause <= ceiling
    assert len({RestartBudget(seed=seed).next_delay(0.0) for seed in range(20)}) > 10


def test_the_pause_has_a_ceiling() -> None:
    budget = RestartBudget(intensity=50, ceiling=2.0, seed=0)
    assert all((budget.next_delay(0.0) or 0.0) <= 2.0 for _ in range(50))


@given(
    intensity=st.integers(0, 4),
    times=st.lists(st.integers(0, 200), max_size=60).map(sorted),
)
def test_no_window_ever_holds_more_restarts_than_the_intensity(intensity: int, times: list[int]) -> None:
    budget = RestartBudget(intensity=intensity, period=30.0, seed=0)
    granted = [now for now in times if budget.next_delay(float(now)) is not None]
    for start in granted:
        assert sum(start <= now < start + 30 for now in granted) <= intensity
    for refused in set(times) - set(granted):
        assert sum(refused - 30 < now <= refused for now in granted) == intensity
