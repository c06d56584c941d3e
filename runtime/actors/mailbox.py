"""The queue in front of an actor: two deques and one waiter.

System items go ahead of user items and are never refused. An anyio memory stream was measured thirty times slower
than a deque for this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import StrEnum
from typing import Generic, TypeVar

from runtime.errors import MailboxFull, Misuse

Item = TypeVar("Item")

DEFAULT_CAPACITY = 1024


class Overflow(StrEnum):
    """What a full mailbox does with one more item."""

    BLOCK = "block"
    """``send`` and asks of the same node wait for room; an immediate put is refused."""
    REJECT = "reject"
    """The sender gets :class:`~runtime.errors.MailboxFull`."""
    DROP_OLDEST = "drop_oldest"
    """The oldest item makes way."""
    LATEST = "latest"
    """Only the newest item is kept."""


class Mailbox(Generic[Item]):
    """Holds items for one reader.

    Most actors never have a system item waiting and few ever block a sender, so those queues are made when needed:
    an empty deque takes more than half a kilobyte.
    """

    __slots__ = ("_blocked", "_capacity", "_overflow", "_reader", "_system", "_user")

    def __init__(self, capacity: int = DEFAULT_CAPACITY, overflow: Overflow = Overflow.REJECT) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox holds at least one item, not {capacity}")
        self._capacity = 1 if overflow is Overflow.LATEST else capacity
        self._overflow = overflow
        self._user: deque[Item] = deque()
        self._system: deque[Item] | None = None
        self._blocked: deque[tuple[Item, asyncio.Future[None] | None]] | None = None
        """Items that wait for room, first come first served; a future where somebody waits with its item."""
        self._reader: asyncio.Future[None] | None = None
        """What the reader waits for; None once it is woken."""

    def __len__(self) -> int:
        return len(self._user) + (len(self._system) if self._system else 0)

    @property
    def is_awaited(self) -> bool:
        """Whether the reader sleeps until an item comes."""
        return self._reader is not None and not self._reader.done()

    def put(self, item: Item, line_up: bool = False) -> Item | None:
        """Add a user item; return the item that had to make way for it, if any.

        With ``line_up``, where the mailbox is full and its policy is to block, the item is put when there is room.

        Raises:
            MailboxFull: the mailbox is full and its policy is to reject, or to block.
        """
        user = self._user
        dropped: Item | None = None
        if len(user) >= self._capacity:
            if line_up and self._overflow is Overflow.BLOCK:
                self._line_up(item, None)
                return None
            if self._overflow is Overflow.REJECT or self._overflow is Overflow.BLOCK:
                raise MailboxFull(f"the mailbox holds {self._capacity} messages and takes no more")
            dropped = user.popleft()
        user.append(item)
        if self._reader is not None:
            self._wake()
        return dropped

    async def send(self, item: Item) -> Item | None:
        """Like :meth:`put`, but where the policy is to block, wait for room. The first to wait is the first to put.

        Raises:
            MailboxFull: the mailbox is full and its policy is to reject.
            CancelledError: the mailbox was drained while this waited, or the caller was cancelled; if it had room
                just before, the item is put all the same.
        """
        if self._overflow is not Overflow.BLOCK or len(self._user) < self._capacity:
            return self.put(item)
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line_up(item, room)
        try:
            await room
        except asyncio.CancelledError:
            self.withdraw(item)
            raise
        return None

    def withdraw(self, item: Item) -> None:
        """Take back an item that waits for room; one that does not is left alone."""
        if self._blocked:
            self._blocked = deque(entry for entry in self._blocked if entry[0] is not item)

    def put_system(self, item: Item) -> None:
        """Add an item that goes ahead of all user items."""
        if self._system is None:
            self._system = deque()
        self._system.append(item)
        self._wake()

    def put_last(self, item: Item) -> None:
        """Add an item that goes behind all user items and, as the last of them, is not refused."""
        if self._blocked:
            # What was lined up before it goes ahead of it.
            self._line_up(item, None)
        else:
            self._user.append(item)
            self._wake()

    def take(self) -> Item | None:
        """Take the next item, if there is one."""
        if self._system:
            return self._system.popleft()
        if self._user:
            item = self._user.popleft()
            if self._blocked:
                self._let_in()
            return item
        return None

    def wait(self) -> asyncio.Future[None]:
        """Return what is done when there is an item; to be awaited by the reader when it could take none.

        Raises:
            Misuse: somebody else is waiting already; a mailbox has one reader.
        """
        if self.is_awaited:
            raise Misuse("a mailbox has one reader, and it is waiting already")
        self._reader = reader = asyncio.get_running_loop().create_future()
        return reader

    async def get(self) -> Item:
        """Take the next item, waiting for one.

        Raises:
            Misuse: somebody else is waiting already.
        """
        while (item := self.take()) is None:
            await self.wait()
        return item

    def drain(self) -> list[Item]:
        """Take everything that is left, what waits for room included; those who wait with it are cancelled."""
        items = [*(self._system or ()), *self._user]
        for item, room in self._blocked or ():
            if room is None:
                items.append(item)
            else:
                room.cancel()
        self._user.clear()
        self._system = self._blocked = None
        return items

    def _line_up(self, item: Item, room: asyncio.Future[None] | None) -> None:
        if self._blocked is None:
            self._blocked = deque()
        self._blocked.append((item, room))

    def _let_in(self) -> None:
        """Hand the room there is to those who waited for it, without giving anybody else a chance to take it."""
        while self._blocked and len(self._user) < self._capacity:
            item, room = self._blocked.popleft()
            if room is None:
                self._user.append(item)
            elif not room.done():
                self._user.append(item)
                room.set_result(None)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
