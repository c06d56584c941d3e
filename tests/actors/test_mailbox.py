from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import Mailbox, Overflow
from runtime.errors import MailboxFull, Misuse


async def test_items_come_out_in_the_order_they_were_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in range(5):
        mailbox.put(item)
    assert [await mailbox.get() for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_system_items_go_ahead_of_user_items_and_keep_their_own_order() -> None:
    mailbox: Mailbox[str] = Mailbox()
    mailbox.put("user")
    mailbox.put_system("first")
    mailbox.put_system("second")
    assert [await mailbox.get() for _ in range(3)] == ["first", "second", "user"]


async def test_system_items_and_the_last_item_are_never_refused() -> None:
    mailbox: Mailbox[str] = Mailbox(1)
    mailbox.put("user")
    mailbox.put_system("system")
    mailbox.put_last("last")
    assert [await mailbox.get() for _ in range(3)] == ["system", "user", "last"]


@pytest.mark.parametrize("overflow", [Overflow.REJECT, Overflow.BLOCK])
def test_a_full_mailbox_refuses_an_immediate_put(overflow: Overflow) -> None:
    mailbox: Mailbox[int] = Mailbox(2, overflow)
    mailbox.put(1)
    mailbox.put(2)
    with pytest.raises(MailboxFull, match="holds 2 messages"):
        mailbox.put(3)
    assert mailbox.drain() == [1, 2]


def test_drop_oldest_makes_way_and_returns_what_was_dropped() -> None:
    mailbox: Mailbox[int] = Mailbox(2, Overflow.DROP_OLDEST)
    assert [mailbox.put(item) for item in (1, 2, 3, 4)] == [None, None, 1, 2]
    assert mailbox.drain() == [3, 4]


def test_latest_keeps_only_the_newest_item_whatever_the_capacity() -> None:
    mailbox: Mailbox[int] = Mailbox(100, Overflow.LATEST)
    assert [mailbox.put(item) for item in (1, 2, 3)] == [None, 1, 2]
    assert mailbox.drain() == [3]


def test_a_mailbox_without_room_for_one_item_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mailbox(0)


async def test_a_reader_that_waits_is_woken_by_a_put() -> None:
    mailbox: Mailbox[str] = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.put("item")
    assert await reader == "item"


async def test_a_second_reader_is_an_error_and_does_not_disturb_the_first() -> None:
    mailbox: Mailbox[str] = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    with pytest.raises(Misuse, match="one reader"):
        await mailbox.get()
    mailbox.put("item")
    assert await reader == "item"


async def test_a_cancelled_reader_loses_no_item_and_makes_way_for_the_next() -> None:
    mailbox: Mailbox[str] = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.put("item")
    reader.cancel()
    await asyncio.wait([reader])
    assert await mailbox.get() == "item"


async def test_a_send_does_not_wait_while_there_is_room() -> None:
    mailbox: Mailbox[int] = Mailbox(1, Overflow.BLOCK)
    await mailbox.send(1)
    assert len(mailbox) == 1


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.LATEST])
async def test_a_send_to_a_mailbox_that_drops_does_not_wait(overflow: Overflow) -> None:
    mailbox: Mailbox[int] = Mailbox(1, overflow)
    assert [await mailbox.send(item) for item in (1, 2)] == [None, 1]


async def test_a_send_to_a_full_mailbox_that_rejects_is_refused() -> None:
    mailbox: Mailbox[int] = Mailbox(1, Overflow.REJECT)
    await mailbox.send(1)
    with pytest.raises(MailboxFull):
        await mailbox.send(2)


async def test_those_who_wait_for_room_are_served_in_their_order_and_nobody_overtakes_them() -> None:
    mailbox: Mailbox[int] = Mailbox(2, Overflow.BLOCK)
    senders = [asyncio.create_task(mailbox.send(item)) for item in range(9)]
    await asyncio.sleep(0)
    mailbox.put(9, line_up=True)
    read = []
    for _ in range(10):
        assert len(mailbox) <= 2
        read.append(await mailbox.get())
        if len(read) < 8:
            with pytest.raises(MailboxFull):
                mailbox.put(-1)
    await asyncio.gather(*senders)
    assert read == list(range(10))


async def test_a_sender_that_gives_up_leaves_its_room_to_the_next() -> None:
    mailbox: Mailbox[str] = Mailbox(1, Overflow.BLOCK)
    mailbox.put("first")
    idle = asyncio.create_task(mailbox.send("never"))
    sender = asyncio.create_task(mailbox.send("second"))
    await asyncio.sleep(0)
    idle.cancel()
    await asyncio.wait([idle])
    assert await mailbox.get() == "first"
    assert await mailbox.get() == "second"
    await sender
    assert len(mailbox) == 0


async def test_an_item_that_waits_for_room_can_be_taken_back() -> None:
    mailbox: Mailbox[str] = Mailbox(1, Overflow.BLOCK)
    for item in ("first", "second", "third"):
        mailbox.put(item, line_up=True)
    mailbox.withdraw("second")
    mailbox.withdraw("first")
    assert [await mailbox.get() for _ in range(2)] == ["first", "third"]


async def test_the_last_item_comes_after_those_that_wait_for_room() -> None:
    mailbox: Mailbox[str] = Mailbox(1, Overflow.BLOCK)
    mailbox.put("first")
    mailbox.put("second", line_up=True)
    mailbox.put_last("last")
    assert [await mailbox.get() for _ in range(3)] == ["first", "second", "last"]


async def test_drain_takes_everything_and_lets_waiting_senders_go() -> None:
    mailbox: Mailbox[str] = Mailbox(1, Overflow.BLOCK)
    mailbox.put("user")
    mailbox.put_system("system")
    mailbox.put("lined up", line_up=True)
    waiting = asyncio.create_task(mailbox.send("never"))
    await asyncio.sleep(0)
    assert mailbox.drain() == ["system", "user", "lined up"]
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert len(mailbox) == 0


@given(
    capacity=st.integers(1, 4),
    overflow=st.sampled_from(list(Overflow)),
    steps=st.lists(st.sampled_from(["put", "system", "get"]), max_size=60),
)
async def test_a_mailbox_behaves_like_two_queues(capacity: int, overflow: Overflow, steps: list[str]) -> None:
    mailbox: Mailbox[int] = Mailbox(capacity, overflow)
    limit = 1 if overflow is Overflow.LATEST else capacity
    system: deque[int] = deque()
    user: deque[int] = deque()
    for item, step in enumerate(steps):
        if step == "system":
            mailbox.put_system(item)
            system.append(item)
        elif step == "get":
            if system or user:
                assert await mailbox.get() == (system.popleft() if system else user.popleft())
        elif len(user) < limit:
            assert mailbox.put(item) is None
            user.append(item)
        elif overflow in (Overflow.DROP_OLDEST, Overflow.LATEST):
            assert mailbox.put(item) == user.popleft()
            user.append(item)
        else:
            with pytest.raises(MailboxFull):
                mailbox.put(item)
        assert len(mailbox) == len(system) + len(user)
    assert mailbox.drain() == [*system, *user]
