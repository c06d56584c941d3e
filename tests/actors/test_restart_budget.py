from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import RestartBudget, Strategy, Supervision
from runtime.actors.restart import restarted_with


def budget_of(seed: int, **terms: float) -> RestartBudget:
    return RestartBudget(Supervision(**terms), random.Random(seed))  # type: ignore[arg-type]  # noqa: S311 - the intensity is an int; no secret


def test_the_fourth_failure_in_thirty_seconds_is_one_too_many() -> None:
    budget = budget_of(1)
    assert [budget.next_delay(now) is None for now in (0.0, 10.0, 20.0, 29.9)] == [False, False, False, True]


def test_failures_older_than_the_period_are_forgiven() -> None:
    budget = budget_of(1)
    assert all(budget.next_delay(now) is not None for now in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0))


def test_the_pause_grows_with_each_recent_restart_and_has_jitter() -> None:
    for seed in range(20):
        budget = budget_of(seed, pause=1.0)
        pauses = [budget.next_delay(0.0) for _ in range(3)]
        for pause, ceiling in zip(pauses, (1.0, 2.0, 4.0), strict=True):
            assert pause is not None
            assert ceiling / 2 <= pause <= ceiling
    assert len({budget_of(seed).next_delay(0.0) for seed in range(20)}) > 10


def test_the_pause_has_a_ceiling() -> None:
    budget = budget_of(0, intensity=50, longest_pause=2.0)
    assert all((budget.next_delay(0.0) or 0.0) <= 2.0 for _ in range(50))


@given(
    intensity=st.integers(0, 4),
    times=st.lists(st.integers(0, 200), max_size=60).map(sorted),
)
def test_no_window_ever_holds_more_restarts_than_the_intensity(intensity: int, times: list[int]) -> None:
    budget = budget_of(0, intensity=intensity)
    granted = [now for now in times if budget.next_delay(float(now)) is not None]
    for start in granted:
        assert sum(start <= now < start + 30 for now in granted) <= intensity
    for refused in set(times) - set(granted):
        assert sum(refused - 30 < now <= refused for now in granted) == intensity


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(Strategy.ONE_FOR_ONE, "b"), (Strategy.ONE_FOR_ALL, "abc"), (Strategy.REST_FOR_ONE, "bc")],
)
def test_a_strategy_says_who_is_restarted_with_a_child_that_failed(strategy: Strategy, expected: Sequence[str]) -> None:
    assert restarted_with(strategy, "abc", "b") == list(expected)
