from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster.detector import PeerState
from runtime.cluster.gossip import MOST_UPDATES, Gossip, Update

UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN


@pytest.mark.parametrize(
    ("state", "incarnation", "overrides"),
    [
        (SUSPECT, 1, True),
        (DOWN, 1, True),
        (UP, 1, False),
        (UP, 2, True),
        (DOWN, 0, False),
    ],
)
def test_what_is_worse_overrides_within_an_incarnation_and_a_later_one_always(
    state: PeerState, incarnation: int, overrides: bool
) -> None:
    assert Update("b", state, incarnation).overrides(UP, 1) is overrides


@given(st.integers(1, 40), st.integers(2, 1000))
def test_every_update_is_sent_as_often_as_every_other_and_then_no_more(count: int, size: int) -> None:
    gossip = Gossip()
    for i in range(count):
        gossip.add(Update(f"n{i}", DOWN, 1))
    sent: Counter[str] = Counter()
    while taken := gossip.take(size):
        assert len(taken) <= MOST_UPDATES
        sent.update(update.node for update in taken)
    assert len(sent) == count
    assert len(set(sent.values())) == 1
    assert 2 <= sent["n0"] <= 13


def test_a_newer_word_takes_the_place_of_an_older_one() -> None:
    gossip = Gossip()
    gossip.add(Update("b", SUSPECT, 1))
    gossip.add(Update("b", UP, 2))
    assert gossip.take(10) == (Update("b", UP, 2),)
    gossip.forget("b")
    assert gossip.take(10) == ()
