"""The queue in front of an actor: two deques and one waiter.

System items go ahead of user items and are never refused. An anyio memory stream was measured thirty times slower
than a deque for this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import StrEnum
from typing import Generic, TypeVar

from runtime.errors import MailboxFull

Item = TypeVar("Item")

DEFAULT_CAPACITY = 1024


class Overflow(StrEnum):
    """What a full mailbox does with one more item."""

    BLOCK = "block"
    """``room()`` waits; an immediate put is refused."""
    REJECT = "reject"
    """The sender gets :class:`~runtime.errors.MailboxFull`."""
    DROP_OLDEST = "drop_oldest"
    """The oldest item makes way."""
    LATEST = "latest"
    """Only the newest item is kept."""


class Mailbox(Generic[Item]):
    """Holds items for one reader."""

    __slots__ = ("_capacity", "_overflow", "_reader", "_room", "_system", "_user")

    def __init__(self, capacity: int = DEFAULT_CAPACITY, overflow: Overflow = Overflow.REJECT) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox holds at least one item, not {capacity}")
        self._capacity = 1 if overflow is Overflow.LATEST else capacity
        self._overflow = overflow
        self._system: deque[Item] = deque()
        self._user: deque[Item] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._room: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._system) + len(self._user)

    def put(self, item: Item) -> Item | None:
        """Add a user item; return the item that had to make way for it, if any.

        Raises:
            MailboxFull: the mailbox is full and its policy is to reject or to block.
        """
        dropped: Item | None = None
        if len(self._user) >= self._capacity:
            if self._overflow in (Overflow.REJECT, Overflow.BLOCK):
                raise MailboxFull(f"the mailbox holds {self._capacity} messages and takes no more")
            dropped = self._user.popleft()
        self._user.append(item)
        self._wake()
        return dropped

    def put_system(self, item: Item) -> None:
        """Add an item that goes ahead of all user items."""
        self._system.append(item)
        self._wake()

    def put_last(self, item: Item) -> None:
        """Add an item that goes behind all user items and, as the last of them, is not refused."""
        self._user.append(item)
        self._wake()

    async def room(self) -> None:
        """Wait until a user item can be put without being refused; put it before the next ``await``."""
        while self._overflow is Overflow.BLOCK and len(self._user) >= self._capacity:
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            try:
                await waiter
            finally:
                if not waiter.done():
                    self._room.remove(waiter)

    async def get(self) -> Item:
        """Take the next item, waiting for one.

        Raises:
            RuntimeError: somebody else is waiting already; a mailbox has one reader.
        """
        while not self._system and not self._user:
            if self._reader is not None:
                raise RuntimeError("a mailbox has one reader, and it is waiting already")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._system:
            return self._system.popleft()
        item = self._user.popleft()
        self._wake_writers()
        return item

    def drain(self) -> list[Item]:
        """Take everything that is left, and let those who wait for room find out for themselves."""
        items = [*self._system, *self._user]
        self._system.clear()
        self._user.clear()
        self._wake_writers()
        return items

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writers(self) -> None:
        # All of them, not one an item: whoever is woken need not put anything, and then nobody would wake the next.
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
