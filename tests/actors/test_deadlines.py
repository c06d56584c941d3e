from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from runtime.actors.deadlines import LEFTOVERS, Deadlines


class Clocked:
    """Keys with deadlines; notes which expired, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.live: set[int] = set()
        self.times: dict[int, float] = {}
        self.deadlines = Deadlines(self.live, self.expired)

    def expired(self, key: int) -> None:
        assert key not in self.times, "a key expires once"
        assert key in self.live
        self.times[key] = self.loop.time()

    def add(self, key: int, after: float) -> None:
        self.live.add(key)
        self.deadlines.add(key, self.loop.time() + after)


async def test_keys_expire_at_their_time_in_any_order_of_adding() -> None:
    clocked = Clocked()
    start = clocked.loop.time()
    for key, after in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        clocked.add(key, after)
    await asyncio.sleep(10)
    assert {key: round(when - start, 6) for key, when in clocked.times.items()} == {1: 3.0, 2: 1.0, 3: 2.0}
    assert list(clocked.times) == [2, 3, 1]


async def test_a_time_in_the_past_expires_at_once() -> None:
    clocked = Clocked()
    clocked.add(1, -5.0)
    await asyncio.sleep(0.001)
    assert list(clocked.times) == [1]


async def test_a_key_that_is_not_live_any_more_does_not_expire() -> None:
    clocked = Clocked()
    for key in (1, 2, 3):
        clocked.add(key, float(key))
    clocked.live -= {1, 3}
    await asyncio.sleep(10)
    assert list(clocked.times) == [2]


async def test_nothing_expires_after_close() -> None:
    clocked = Clocked()
    clocked.add(1, 1.0)
    clocked.deadlines.close()
    await asyncio.sleep(2)
    assert not clocked.times


async def test_an_expiry_may_add_the_next_deadline() -> None:
    fired: list[int] = []
    loop = asyncio.get_running_loop()

    def again(key: int) -> None:
        fired.append(key)
        if key < 5:
            deadlines.add(key + 1, loop.time() + 1)

    deadlines = Deadlines(range(10), again)
    deadlines.add(1, loop.time() + 1)
    await asyncio.sleep(10)
    assert fired == [1, 2, 3, 4, 5]


async def test_keys_that_are_over_do_not_pile_up() -> None:
    clocked = Clocked()
    for key in range(10_000):
        clocked.add(key, 3600.0)
        assert len(clocked.deadlines._heap) <= LEFTOVERS + 1
        clocked.live.discard(key)
    for key in range(10_000, 20_000):
        clocked.add(key, 3600.0)
    assert len(clocked.deadlines._heap) <= 10_000 + LEFTOVERS + 1
    await asyncio.sleep(3600.0)
    assert len(clocked.times) == 10_000


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40)),
        st.tuples(st.just("end"), st.integers(0, 100)),
        st.tuples(st.just("sweep"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 15)),
    ),
    max_size=120,
)


@given(Steps)
async def test_exactly_the_live_keys_whose_time_came_expire(steps: list[tuple[str, int]]) -> None:
    clocked = Clocked()
    due: dict[int, float] = {}
    for key, (step, amount) in enumerate(steps):
        if step == "add":
            # Half seconds apart from the instants at which the test looks, so that no tie has two right answers.
            due[key] = clocked.loop.time() + amount + 0.5
            clocked.add(key, amount + 0.5)
        elif step == "end" and clocked.live:
            ended = sorted(clocked.live)[amount % len(clocked.live)]
            clocked.live.discard(ended)
            due.pop(ended, None)
        elif step == "sweep":
            clocked.deadlines.sweep()
        elif step == "wait":
            clocked.times.clear()
            await asyncio.sleep(amount)
            come = sorted((when, key) for key, when in due.items() if when <= clocked.loop.time())
            assert sorted(clocked.times) == sorted(key for _, key in come)
            assert [due[key] for key in clocked.times] == [when for when, _ in come]
            for _, key in come:
                del due[key]
    clocked.deadlines.close()
