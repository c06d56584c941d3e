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
    held.reserve("m", 1, 300, OWNER, MEMORY, 0, 0)
    left = held.remaining(MEMORY, 0)
    assert (left.grantable, left.reserved, left.total) == (400, 300, 1000)


def test_a_refusal_shows_what_was_asked_and_what_there_is_and_grants_nothing() -> None:
    held = Reservations()
    held.reserve("m", 1, 300, OWNER, MEMORY, 0, 0)
    with pytest.raises(PlacementRefused, match=r"b asks for 401 bytes for m, and 400 can be granted.*300 of them"):
        held.reserve("m", 2, 401, OWNER, MEMORY, 0, 0)
    assert len(held) == 1
    held.reserve("m", 2, 400, OWNER, MEMORY, 0, 0)
    assert held.remaining(MEMORY, 0).grantable == 0


def test_memory_that_models_hold_is_not_taken_off_twice_be_it_weights_or_caches() -> None:
    held = Reservations()
    held.reserve("m", 1, 300, OWNER, MEMORY, 0, 0)
    for taken in (0, 200, 300):  # nothing yet, the weights, and a cache that is full
        left = held.remaining(msgspec.structs.replace(MEMORY, available=800 - taken), taken)
        assert (left.grantable, left.promised, left.reserved) == (400, 300 - taken, 300)


def test_memory_that_something_else_took_is_noticed_before_a_load_and_what_is_kept_free_may_be_used_up() -> None:
    held = Reservations()
    grant = held.reserve("m", 1, 300, OWNER, MEMORY, 0, 0)
    held.reserve("other", 1, 200, OWNER, MEMORY, 0, 0)
    enough, too_little = (msgspec.structs.replace(MEMORY, available=available) for available in (450, 449))
    held.confirm(grant.id, enough, 50)
    with pytest.raises(
        PlacementRefused, match=r"300 bytes were granted to m, .*450 are promised.* 449 available. Free 1 "
    ):
        held.confirm(grant.id, too_little, 50)
    held.release(grant.id)
    with pytest.raises(PlacementRefused, match="is gone"):
        held.confirm(grant.id, MEMORY, 0)


@pytest.mark.parametrize(
    ("memory", "grantable"),
    [
        (MEMORY, 700),
        (msgspec.structs.replace(MEMORY, limit=500), 400),
        (msgspec.structs.replace(MEMORY, limit=900), 700),
        (msgspec.structs.replace(MEMORY, swap=1000), 700),
        (msgspec.structs.replace(MEMORY, swap=1000, policy="swap"), 1700),
        (msgspec.structs.replace(MEMORY, limit=500, swap=1000, policy="swap"), 1400),
        (msgspec.structs.replace(MEMORY, promised=650, swap=30, policy="swap"), 80),
        (msgspec.structs.replace(MEMORY, promised=1000), 0),
    ],
)
def test_what_can_be_granted_is_the_least_bound_and_swap_only_where_it_is_allowed(
    memory: NodeMemory, grantable: int
) -> None:
    assert memory.grantable == grantable


def test_a_node_that_does_not_look_at_its_memory_grants_and_confirms_whatever_is_asked() -> None:
    held = Reservations()
    memory = msgspec.structs.replace(MEMORY, policy="off", limit=1)
    grant = held.reserve("m", 1, 1 << 50, OWNER, memory, 0, 0)
    held.confirm(grant.id, memory, 0)


def test_a_lost_owner_loses_all_of_its_grants_and_no_others() -> None:
    held = Reservations()
    for owner in (OWNER, OTHER, OWNER):
        held.reserve("m", 1, 100, owner, MEMORY, 0, 0)
    assert len(held.release_owner(OWNER)) == 2
    assert [grant.owner for grant in held.all()] == [OTHER]
    assert not held.owns(OWNER)


def test_a_grant_that_is_never_committed_runs_out_and_a_committed_one_does_not() -> None:
    held = Reservations()
    forgotten = held.reserve("m", 1, 100, OWNER, MEMORY, 0, 0)
    used = held.reserve("m", 1, 100, OWNER, MEMORY, 0, 0)
    held.commit(used.id)
    assert [grant.id for grant in held.expire(before=1)] == [forgotten.id]
    with pytest.raises(PlacementRefused, match="is gone"):
        held.commit(forgotten.id)


def test_releasing_twice_is_no_error() -> None:
    held = Reservations()
    grant = held.reserve("m", 1, 100, OWNER, MEMORY, 0, 0)
    assert held.release(grant.id) == grant
    assert held.release(grant.id) is None


STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.integers(-5, 1200)),
    st.tuples(st.just("use"), st.integers(0, 1200)),
    st.tuples(st.just("release"), st.integers(0, 12)),
)


@given(st.lists(STEPS, max_size=40), st.integers(0, 300))
def test_more_than_there_is_is_never_granted(steps: list[tuple[str, int]], swap: int) -> None:
    """The machine's available memory falls by what models hold, which is never more than what they were granted."""
    held = Reservations()
    memory = NodeMemory(total=1000, available=1000, reserve=50, swap=swap, policy="swap")
    most = memory.available + swap - memory.reserve
    used = 0

    def now() -> NodeMemory:
        return msgspec.structs.replace(
            memory, available=max(0, memory.available - used), swap=min(swap, most + 50 - used)
        )

    for step, value in steps:
        before = held.all()
        try:
            match step:
                case "reserve":
                    held.reserve("m", 1, value, OWNER, now(), used, 0)
                case "use":
                    used = value
                case _:
                    held.release(value)
        except PlacementRefused:
            assert held.all() == before
        granted = sum(grant.bytes for grant in held.all())
        used = min(used, granted)
        assert granted <= most
        assert held.remaining(now(), used).grantable == most - granted
