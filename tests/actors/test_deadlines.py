from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from runtime.actors.deadlines import LEFTOVERS, Deadlines


class Expired:
    """Notes which keys expired, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.times: dict[int, float] = {}

    def __call__(self, key: int) -> None:
        assert key not in self.times, "a key expires once"
        self.times[key] = self.loop.time()


async def test_keys_expire_at_their_time_in_any_order_of_adding() -> None:
    expired = Expired()
    deadlines = Deadlines(expired)
    start = expired.loop.time()
    for key, after in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        deadlines.add(key, start + after)
    await asyncio.sleep(10)
    assert {key: round(when - start, 6) for key, when in expired.times.items()} == {1: 3.0, 2: 1.0, 3: 2.0}
    assert list(expired.times) == [2, 3, 1]


async def test_a_time_in_the_past_expires_at_once() -> None:
    expired = Expired()
    Deadlines(expired).add(1, expired.loop.time() - 5)
    await asyncio.sleep(0.001)
    assert list(expired.times) == [1]


async def test_adding_a_key_again_moves_its_deadline() -> None:
    expired = Expired()
    deadlines = Deadlines(expired)
    deadlines.add(1, expired.loop.time() + 1)
    deadlines.add(1, expired.loop.time() + 5)
    await asyncio.sleep(4)
    assert not expired.times
    await asyncio.sleep(2)
    assert list(expired.times) == [1]


async def test_nothing_expires_after_close() -> None:
    expired = Expired()
    deadlines = Deadlines(expired)
    deadlines.add(1, expired.loop.time() + 1)
    deadlines.close()
    await asyncio.sleep(2)
    assert not expired.times


async def test_an_expiry_may_add_the_next_deadline() -> None:
    fired: list[int] = []

    def again(key: int) -> None:
        fired.append(key)
        if key < 5:
            deadlines.add(key + 1, asyncio.get_running_loop().time() + 1)

    deadlines = Deadlines(again)
    deadlines.add(1, asyncio.get_running_loop().time() + 1)
    await asyncio.sleep(10)
    assert fired == [1, 2, 3, 4, 5]


async def test_discarded_keys_do_not_pile_up() -> None:
    deadlines = Deadlines(Expired())
    far = asyncio.get_running_loop().time() + 3600
    for key in range(10_000):
        deadlines.add(key, far)
        deadlines.discard(key)
    assert len(deadlines) == 0
    assert len(deadlines._heap) <= LEFTOVERS
    deadlines.close()


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20), st.integers(1, 40)),
        st.tuples(st.just("discard"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 15)),
    ),
    max_size=120,
)


@given(Steps)
async def test_exactly_the_keys_whose_time_came_expire(steps: list[tuple[str, int, int]]) -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    deadlines = Deadlines(fired.append)
    due: dict[int, float] = {}
    for step, key, amount in steps:
        if step == "add":
            # Half seconds apart from the instants at which the test looks, so that no tie has two right answers.
            due[key] = loop.time() + amount + 0.5
            deadlines.add(key, due[key])
        elif step == "discard":
            due.pop(key, None)
            deadlines.discard(key)
        else:
            fired.clear()
            await asyncio.sleep(amount)
            come = sorted((when, key) for key, when in due.items() if when <= loop.time())
            assert sorted(fired) == sorted(key for _, key in come)
            assert [due[key] for key in fired] == [when for when, _ in come]
            for _, key in come:
                del due[key]
        assert len(deadlines) == len(due)
    deadlines.close()
