"""On whose behalf the running code asks, so that a request can carry the chain of those who wait for it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from runtime.actors.signal import Caller

if TYPE_CHECKING:
    from runtime.actors.cell import Cell


class Aside:
    """Whose work a task beside the mailbox is: it holds up nobody's mailbox, but others may wait for what it does."""

    __slots__ = ("chain",)

    def __init__(self, chain: tuple[Caller, ...]) -> None:
        self.chain = chain


CALLER: ContextVar[Cell | Aside | None] = ContextVar("runtime.actors.caller", default=None)
"""On whose behalf the running code asks: an actor in its ``receive``, a task beside it, or nobody in particular."""
