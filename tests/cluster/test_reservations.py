from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import ActorRef
from runtime.cluster import Reservations
from runtime.errors import PlacementRefused
from runtime.spi import NodeMemory

OWNER = ActorRef("b", "/driver", 7)
OTHER = ActorRef("c", "/driver", 8)
MEMORY = NodeMemory(total=1000, available=800, reserve=100)


def test_what_is_granted_is_taken_off_what_can_be_granted() -> None:
    held = Reservations()
    held.reserve("m", 1, 300, OWNER, MEMORY, 0)
    left = held.remaining(MEMORY)
    assert (left.grantable, left.reserved, left.total) == (400, 300, 1000)


def test_a_refusal_shows_what_was_asked_and_what_there_is_and_grants_nothing() -> None:
    held = Reservations()
    held.reserve("m", 1, 300, OWNER, MEMORY, 0)
    with pytest.raises(PlacementRefused, match=r"b asks for 401 bytes for m, and 400 can be granted.*300 of them"):
        held.reserve("m", 2, 401, OWNER, MEMORY, 0)
    assert len(held) == 1
    held.reserve("m", 2, 400, OWNER, MEMORY, 0)
    assert held.remaining(MEMORY).grantable == 0


def test_memory_that_is_in_use_is_not_taken_off_twice() -> None:
    held = Reservations()
    grant = held.reserve("m", 1, 300, OWNER, MEMORY, 0)
    held.commit(grant.id, 200)
    after_load = msgspec.structs.replace(MEMORY, available=600)
    assert held.remaining(after_load).grantable == 400
    held.commit(grant.id, None)
    assert held.remaining(msgspec.structs.replace(MEMORY, available=500)).grantable == 400


def test_a_lost_owner_loses_all_of_its_grants_and_no_others() -> None:
    held = Reservations()
    for owner in (OWNER, OTHER, OWNER):
        held.reserve("m", 1, 100, owner, MEMORY, 0)
    assert len(held.release_owner(OWNER)) == 2
    assert [grant.owner for grant in held.all()] == [OTHER]
    assert not held.owns(OWNER)


def test_a_grant_that_is_never_committed_runs_out_and_a_committed_one_does_not() -> None:
    held = Reservations()
    forgotten = held.reserve("m", 1, 100, OWNER, MEMORY, 0)
    used = held.reserve("m", 1, 100, OWNER, MEMORY, 0)
    held.commit(used.id, None)
    assert [grant.id for grant in held.expire(before=1)] == [forgotten.id]
    with pytest.raises(PlacementRefused, match="is gone"):
        held.commit(forgotten.id, None)


def test_releasing_twice_is_no_error() -> None:
    held = Reservations()
    grant = held.reserve("m", 1, 100, OWNER, MEMORY, 0)
    assert held.release(grant.id) == grant
    assert held.release(grant.id) is None


STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.integers(-5, 1200)),
    st.tuples(st.just("commit"), st.integers(0, 12)),
    st.tuples(st.just("partly"), st.integers(0, 12)),
    st.tuples(st.just("release"), st.integers(0, 12)),
)


@given(st.lists(STEPS, max_size=40))
def test_more_than_there_is_is_never_granted(steps: list[tuple[str, int]]) -> None:
    """The machine's available memory falls by exactly what is allocated, as the operating system would tell."""
    held = Reservations()
    memory = NodeMemory(total=1000, available=1000, reserve=50)

    def now_available() -> NodeMemory:
        allocated = sum(grant.allocated for grant in held.all())
        return msgspec.structs.replace(memory, available=memory.available - allocated)

    for step, value in steps:
        before = held.all()
        try:
            match step:
                case "reserve":
                    held.reserve("m", 1, value, OWNER, now_available(), 0)
                case "commit":
                    held.commit(value, None)
                case "partly":
                    held.commit(value, value * 10)
                case _:
                    held.release(value)
        except PlacementRefused:
            assert held.all() == before
        granted = sum(grant.bytes for grant in held.all())
        assert granted <= memory.available - memory.reserve
        assert held.remaining(now_available()).grantable == memory.available - memory.reserve - granted
