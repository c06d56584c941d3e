"""How long an idle model stays."""

from __future__ import annotations

from runtime.inference.keep_alive import SUBMIT_SECONDS, KeepAlive


def test_a_model_stays_for_its_time_after_its_last_use() -> None:
    kept = KeepAlive(300, 1000)
    assert kept.left(1100, leaving=False) == 200
    kept.used(1100)
    assert kept.left(1100, leaving=False) == 300
    assert kept.expires == 1400
    assert kept.left(2000, leaving=False) == 0


def test_a_negative_time_is_for_ever_unless_it_is_to_leave() -> None:
    kept = KeepAlive(-1, 1000)
    assert kept.expires is None
    assert kept.left(9999, leaving=False) == float("inf")
    assert kept.left(9999, leaving=True) == 0


def test_whoever_was_told_that_it_is_ready_is_waited_for_whatever_else_says_that_it_may_go() -> None:
    kept = KeepAlive(0, 1000)
    kept.expect(1000)
    kept.expect(1010)
    assert kept.left(1020, leaving=True) == SUBMIT_SECONDS - 10
    kept.expect_one_less()
    assert kept.left(1020, leaving=True) == SUBMIT_SECONDS - 10
    kept.expect_one_less()
    assert kept.left(1020, leaving=True) == 0
    kept.expect(1020)
    assert kept.left(1020 + SUBMIT_SECONDS, leaving=True) == 0, "not for ever"
