from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from runtime.errors import ProtocolError
from runtime.wire.connection import ConnectionEnded
from runtime.wire.inbox import HIGH, LOW, TURN, Inbox


class Source:
    """A connection's side of an inbox."""

    def __init__(self) -> None:
        self.reading = True
        self.inbox = Inbox(self._pause, self._resume)

    def _pause(self) -> None:
        assert self.reading
        self.reading = False

    def _resume(self) -> None:
        assert not self.reading
        self.reading = True

    def arrive(self, *frames: bytes) -> None:
        for frame in frames:
            self.inbox.put(frame)
        self.inbox.pump()


class Taker(list[bytes]):
    """Takes frames, and says whether the next may follow at once."""

    def __init__(self, *, more: bool) -> None:
        super().__init__()
        self.more = more

    def __call__(self, frame: bytes) -> bool:
        self.append(frame)
        return self.more


def numbered(first: int, stop: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(first, stop)]


async def turns(condition: Callable[[], bool]) -> int:
    """Return how many turns of the loop it takes until something is so."""
    for turn in range(1000):
        if condition():
            return turn
        await asyncio.sleep(0)
    raise AssertionError("it never was")


async def test_what_came_before_anybody_took_it_goes_first_and_the_rest_as_it_comes() -> None:
    source, got = Source(), Taker(more=True)
    source.arrive(b"1", b"2", b"3")
    assert await source.inbox.recv() == b"1"
    delivering = asyncio.ensure_future(source.inbox.deliver(got))
    await turns(lambda: got == [b"2", b"3"])
    await asyncio.sleep(0)
    source.arrive(b"4")
    assert got == [b"2", b"3", b"4"], "a frame is handed over within the turn in which it arrives"
    source.inbox.end(ConnectionEnded())
    with pytest.raises(ConnectionEnded):
        await delivering


async def test_whoever_waits_for_a_frame_gets_it_and_then_the_end() -> None:
    source = Source()
    first = asyncio.ensure_future(source.inbox.recv())
    await asyncio.sleep(0)
    source.arrive(b"1", b"2")
    source.inbox.end(ConnectionEnded(1001))
    source.inbox.end(ConnectionEnded(1006))
    assert await first == b"1"
    assert await source.inbox.recv() == b"2"
    for _ in range(2):
        with pytest.raises(ConnectionEnded) as ended:
            await source.inbox.recv()
        assert ended.value.code == 1001


async def test_a_taker_that_wants_others_to_have_their_turn_gets_the_next_frame_in_the_next_one() -> None:
    source, got = Source(), Taker(more=False)
    delivering = asyncio.ensure_future(source.inbox.deliver(got))
    await asyncio.sleep(0)
    source.arrive(b"1", b"2", b"3")
    assert got == [b"1"]
    assert not source.reading, "a loop that reads on and on would leave nobody a turn"
    source.arrive(b"4")
    assert got == [b"1"], "what arrives does not jump the queue"
    assert await turns(lambda: len(got) == 4) >= 3
    assert got == [b"1", b"2", b"3", b"4"]
    await turns(lambda: source.reading)
    delivering.cancel()


async def test_a_flood_of_frames_leaves_others_their_turns_and_arrives_in_order_before_the_end() -> None:
    source, got = Source(), Taker(more=True)
    delivering = asyncio.ensure_future(source.inbox.deliver(got))
    await asyncio.sleep(0)
    flood = numbered(0, 5 * TURN)
    source.arrive(*flood)
    source.inbox.end(ConnectionEnded())
    assert len(got) == TURN
    with pytest.raises(ConnectionEnded):
        await delivering
    assert got == flood


async def test_reading_stops_where_nobody_takes_and_goes_on_when_somebody_does() -> None:
    source = Source()
    source.arrive(*numbered(0, HIGH - 1))
    assert source.reading
    source.arrive(*numbered(HIGH - 1, HIGH))
    assert not source.reading
    taken = [await source.inbox.recv() for _ in range(HIGH - LOW - 1)]
    assert not source.reading
    taken.append(await source.inbox.recv())
    assert source.reading
    assert taken == numbered(0, HIGH - LOW)


async def test_what_a_taker_raises_ends_the_delivery_and_what_comes_afterwards_is_thrown_away() -> None:
    source = Source()

    def refuse(frame: bytes) -> bool:
        raise ProtocolError(f"no {frame.decode()}")

    delivering = asyncio.ensure_future(source.inbox.deliver(refuse))
    await asyncio.sleep(0)
    source.arrive(*numbered(0, 2 * HIGH))
    with pytest.raises(ProtocolError, match="no"):
        await delivering
    assert source.reading, "or a goodbye would never be read"
    source.arrive(*numbered(0, 2 * HIGH))
    assert source.reading
