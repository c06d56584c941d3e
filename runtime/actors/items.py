"""What lies in a mailbox beside plain messages and requests."""

from __future__ import annotations

from collections.abc import Callable

from runtime.actors.message import Message


class Item:
    """Base of what a mailbox holds beside plain messages."""

    __slots__ = ()


class Delivered(Item):
    """A message that came from another node, which is told when it has been handled."""

    __slots__ = ("consumed", "message")

    def __init__(self, message: Message, consumed: Callable[[], None] | None) -> None:
        self.message = message
        self.consumed = consumed


class Stop(Item):
    """Ends the actor."""

    __slots__ = ()


class LifeOver(Item):
    """Ends one life from outside the messages: a task's failure, a child's beyond repair, or the actor's own wish.

    It names the life it is about, because the mailbox outlives a restart and the item must not end the next life.
    """

    __slots__ = ("error", "life")

    def __init__(self, life: int, error: Exception | None) -> None:
        self.life = life
        self.error = error


class Recall(Item):
    """Ends one life because a sibling failed."""

    __slots__ = ()
