"""How long a generation that was lost is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import PeerUnreachable, PlacementRefused
from runtime.inference.recovery import GRACE_SECONDS, LEAST_SECONDS, LONGEST_WAIT, Patience, given_up

TOLD_SECONDS = 15.0
"""Within which a client is told that its text cannot be completed."""


def test_the_first_try_after_a_loss_waits_for_nothing() -> None:
    patience = Patience(0.0)
    assert patience.next_try(1.0) == 0.0


@given(noticed=st.floats(0, 8), work=st.floats(0, 1))
def test_it_is_given_up_in_time_and_not_before_the_survivors_had_some(noticed: float, work: float) -> None:
    patience, now, tries = Patience(0.0), noticed, 0
    while (wait := patience.next_try(now)) is not None:
        assert 0 <= wait <= LONGEST_WAIT
        tries += 1
        now += wait + work
    assert noticed + LEAST_SECONDS - LONGEST_WAIT - work <= now <= TOLD_SECONDS
    assert tries >= 2


@given(st.integers(1, 50))
def test_a_generation_that_gets_on_is_never_given_up(losses: int) -> None:
    patience, now = Patience(0.0), 0.0
    for _ in range(losses):
        now += GRACE_SECONDS
        assert patience.next_try(now) == 0.0
        patience.got_on(now)


def test_what_the_client_is_told_has_both_reasons_and_the_code_of_the_second() -> None:
    fault = given_up(7, PeerUnreachable("node b was lost"), PlacementRefused("it fits nowhere"))
    assert isinstance(fault, PlacementRefused)
    assert "7 tokens" in fault.message
    assert "node b was lost" in fault.message
    assert "it fits nowhere" in fault.message


def test_a_node_that_hung_while_it_was_to_take_over_prolongs_the_time_once() -> None:
    patience = Patience(0.0)
    assert patience.next_try(1.0) == 0.0
    patience.prolong(120.0)
    assert patience.next_try(120.0) is not None
    patience.prolong(240.0)
    assert patience.next_try(240.0) is None
    patience.got_on(300.0)
    assert patience.next_try(301.0) == 0.0
    patience.prolong(420.0)
    assert patience.next_try(420.0) is not None
