"""A request at its callee, and the way back to whoever asked."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from runtime.actors.items import Item
from runtime.actors.message import Message
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.actors.cell import Cell
    from runtime.actors.signal import Caller


class _State(IntEnum):
    OPEN = 0
    ANSWERED = 1
    ABANDONED = 2


# Names of the module, because an attribute of an enum class is looked up slowly, and these are on the way of every ask.
OPEN, ANSWERED, ABANDONED = _State


class ReplyTo(Item):
    """Where the answer to one request goes. The first answer counts, and none does once the asker has given up."""

    __slots__ = ("callee", "chain", "consumed", "message", "state")

    def __init__(self, message: Message, chain: tuple[Caller, ...], consumed: Callable[[], None] | None = None) -> None:
        self.message = message
        self.chain = chain
        """Who waits for the answer, the first asker first."""
        self.consumed = consumed
        self.state = OPEN
        self.callee: Cell | None = None
        """Set when the request is admitted."""

    @property
    def is_open(self) -> bool:
        """Whether the asker still waits for an answer."""
        return self.state is OPEN

    def answer(self, value: Message | None) -> None:
        """Send the reply."""
        if self._close(value):
            self._answer(value)

    def fail(self, fault: RuntimeFault) -> None:
        """Send a fault instead of a reply."""
        if self._close(fault):
            self._fail(fault)

    def abandon(self) -> None:
        """Nobody waits for the answer any more: let the callee leave off, wherever it is with the request."""
        if self.state is OPEN:
            self.state = ABANDONED
            if self.callee is not None:
                self.callee.abandoned(self)

    def _close(self, what: object) -> bool:
        """Note that there is an answer; return whether anybody wants it."""
        callee = self.callee
        if self.state is OPEN:
            self.state = ANSWERED
            if callee is not None and callee.taken:
                callee.taken.pop(self, None)
            return True
        if self.state is ABANDONED and callee is not None:
            callee.answered_late(what)
        return False

    def _answer(self, value: Message | None) -> None:
        raise NotImplementedError

    def _fail(self, fault: RuntimeFault) -> None:
        raise NotImplementedError
