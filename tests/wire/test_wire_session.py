from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.actors import Lane
from runtime.errors import MailboxFull, ProtocolError
from runtime.wire.flow import Allowance, Budget, Window
from runtime.wire.frame import CHUNK_BYTES, Grant, batch_frame, grant_frame
from runtime.wire.limits import KIB, Limits
from runtime.wire.session import LaneTraffic, Session
from runtime.wire.tensor import Buffer

SMALL = Limits(
    control_message=8 * KIB,
    bulk_message=3 * CHUNK_BYTES,
    control_queue=64 * KIB,
    bulk_queue=4 * CHUNK_BYTES,
    queue_messages=50,
    control_credit=4 * KIB,
    bulk_credit=CHUNK_BYTES,
    credit_messages=8,
)


class End:
    """One side of a session, whose frames go nowhere by themselves."""

    def __init__(self, limits: Limits = SMALL) -> None:
        self.session = Session(limits, lambda lane: None)
        self.going: dict[Lane, Iterator[Buffer]] = {}

    def next_frame(self, lane: Lane) -> bytes | None:
        """What is sent next on a lane, if anything."""
        frames = self.going.setdefault(lane, self.session.frames(lane))
        frame = next(frames, None)
        if frame is None:
            del self.going[lane]
            return None
        return bytes(frame)

    def traffic(self, lane: Lane) -> LaneTraffic:
        traffic = LaneTraffic()
        self.session.report(lane, traffic)
        return traffic


def exchange(a: End, b: End) -> dict[Lane, list[bytes]]:
    """Carry everything that may go, both ways; return what b got, none of which is consumed."""
    got: dict[Lane, list[bytes]] = {lane: [] for lane in Lane}
    moved = True
    while moved:
        moved = False
        for lane in Lane:
            for near, far in ((a, b), (b, a)):
                while (frame := near.next_frame(lane)) is not None:
                    moved = True
                    payloads = far.session.feed(lane, frame)
                    if far is b:
                        got[lane] += [bytes(payload) for payload in payloads]
    return got


def test_nothing_is_sent_before_the_first_grant() -> None:
    a = End()
    a.session.put(Lane.BULK, [b"tensor"], 6)
    a.session.put(Lane.CONTROL, [b"tell"], 4)
    assert a.next_frame(Lane.BULK) is None
    grants = [a.next_frame(Lane.CONTROL), a.next_frame(Lane.CONTROL)]
    assert grants == [grant_frame(Lane.CONTROL, Grant(8, 4 * KIB)), grant_frame(Lane.BULK, Grant(8, CHUNK_BYTES))]
    assert a.next_frame(Lane.CONTROL) is None


def test_small_messages_queued_together_leave_in_one_frame_and_in_order() -> None:
    a, b = End(), End()
    exchange(a, b)
    payloads = [bytes([number]) for number in range(8)]
    for payload in payloads:
        a.session.put(Lane.CONTROL, [payload], 1)
    assert a.next_frame(Lane.CONTROL) == batch_frame(0, payloads)


def test_a_slow_reader_holds_its_window_and_the_sender_its_queue_and_not_a_message_more() -> None:
    a, b = End(), End()
    exchange(a, b)
    size = CHUNK_BYTES // 2
    received = 0
    for _ in range(2 + 8):  # the window, then the queue
        a.session.put(Lane.BULK, [bytes(size)], size)
        received += len(exchange(a, b)[Lane.BULK])
    with pytest.raises(MailboxFull, match="wait on the bulk lane"):
        a.session.put(Lane.BULK, [bytes(size)], size)
    assert received == 2
    assert b.traffic(Lane.BULK).held_bytes == CHUNK_BYTES
    assert a.traffic(Lane.BULK).queued_bytes == 4 * CHUNK_BYTES
    assert a.traffic(Lane.BULK).credit_bytes == 0
    # The other lane goes on as if nothing were.
    a.session.put(Lane.CONTROL, [b"tell"], 4)
    assert exchange(a, b)[Lane.CONTROL] == [b"tell"]
    # And consumption lets the next one through.
    b.session.consumed(Lane.BULK, size)
    assert len(exchange(a, b)[Lane.BULK]) == 1


def test_a_message_larger_than_the_window_passes_once_half_of_it_is_free() -> None:
    a, b = End(), End()
    exchange(a, b)
    large = 3 * CHUNK_BYTES
    for _ in range(3):
        a.session.put(Lane.BULK, [bytes(large)], large) if a.session.idle() else None
        assert len(exchange(a, b)[Lane.BULK]) == 1
        assert b.traffic(Lane.BULK).held_bytes == large
        b.session.consumed(Lane.BULK, large)


def test_a_message_without_credit_is_an_offence() -> None:
    b = End()
    exchange(b, End())
    for number in range(8):
        b.session.feed(Lane.CONTROL, batch_frame(number, [b"x"]))
    with pytest.raises(ProtocolError, match="without credit"):
        b.session.feed(Lane.CONTROL, batch_frame(8, [b"x"]))


@pytest.mark.parametrize("sequence", [0, 2])
def test_a_message_that_comes_twice_or_too_early_is_an_offence(sequence: int) -> None:
    b = End()
    exchange(b, End())
    b.session.feed(Lane.CONTROL, batch_frame(0, [b"x"]))
    with pytest.raises(ProtocolError, match=f"message {sequence} came where message 1 was due"):
        b.session.feed(Lane.CONTROL, batch_frame(sequence, [b"x"]))


def test_a_grant_that_takes_back_is_an_offence() -> None:
    a = End()
    a.session.feed(Lane.CONTROL, grant_frame(Lane.BULK, Grant(5, 500)))
    with pytest.raises(ProtocolError, match="takes back"):
        a.session.feed(Lane.CONTROL, grant_frame(Lane.BULK, Grant(6, 499)))


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        Window(0, 100)


@given(
    sizes=st.lists(st.integers(1, 300), max_size=60),
    window=st.integers(2, 200),
    messages=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_credit_never_runs_dry_and_never_covers_more_than_the_window_or_one_message_over_half_of_it(
    sizes: list[int], window: int, messages: int, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated, not a secret
    budget, allowance = Budget(), Allowance(Window(messages, window))
    under_way: deque[int] = deque()
    waiting = deque(sizes)
    while waiting or under_way:
        if chance.random() < 0.5 and (grant := allowance.due()) is not None:
            budget.raise_to(grant)
        if waiting and budget.spend(waiting[0]):
            size = waiting.popleft()
            allowance.receive([size])
            under_way.append(size)
        elif under_way:
            allowance.consume(under_way.popleft())
        elif (grant := allowance.due()) is not None:
            budget.raise_to(grant)
        else:
            pytest.fail(f"a message of {waiting[0]} waits for ever: {budget.left}")
        assert len(under_way) <= messages
        assert sum(under_way) <= max(window, (window + 1) // 2 + max(sizes))
        assert allowance.held == Grant(len(under_way), sum(under_way))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_message_arrives_once_and_in_order_on_its_lane(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated, not a secret
    a, b = End(), End(msgspec.structs.replace(SMALL, credit_messages=chance.randint(1, 8)))
    sent: dict[Lane, list[bytes]] = {lane: [] for lane in Lane}
    got: dict[Lane, list[bytes]] = {lane: [] for lane in Lane}
    held: deque[tuple[Lane, int]] = deque()
    for number in range(200):
        lane = chance.choice(list(Lane))
        most = 8 * KIB if lane is Lane.CONTROL else 3 * CHUNK_BYTES
        payload = number.to_bytes(4, "little") * chance.choice([1, 5, 1000, most // 4])
        parts: list[Buffer] = [payload] if chance.random() < 0.5 else [payload[:9], payload[9:]]
        try:
            a.session.put(lane, [part for part in parts if part], len(payload))
        except MailboxFull:
            pass
        else:
            sent[lane].append(payload)
        if chance.random() < 0.5:
            for lane, payloads in exchange(a, b).items():
                got[lane] += payloads
                held.extend((lane, len(payload)) for payload in payloads)
        while held and chance.random() < 0.7:
            b.session.consumed(*held.popleft())
    while held or not a.session.idle():
        for lane, payloads in exchange(a, b).items():
            got[lane] += payloads
            held.extend((lane, len(payload)) for payload in payloads)
        while held:
            b.session.consumed(*held.popleft())
    assert got == sent
