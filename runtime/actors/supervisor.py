"""Looks after the actors of one parent: decides who lives again after an end, and when.

It acts beside the parent's mailbox, so that a parent in the middle of a message holds nobody up.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from loguru import logger

from runtime.actors.restart import Restart, RestartBudget, Strategy, Supervision, restarted_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.actors.cell import Cell

GRACE = 5.0
"""Seconds that an actor has to finish the message in hand when it is restarted with others; then it is cancelled."""


class Supervisor:
    """The supervisor of some siblings, for one life of their parent.

    Args:
        terms: what the parent declares.
        escalate: called with the failure that is one too many.
        jitter: varies the pauses.
    """

    def __init__(self, terms: Supervision, escalate: Callable[[Exception], None], jitter: random.Random) -> None:
        self.children: dict[str, Cell] = {}
        """By path, in the order of their spawn."""
        self._terms = terms
        self._budget = RestartBudget(terms, jitter)
        self._escalate = escalate
        self._fallen: dict[Cell, float] = {}
        """Children whose lives are over and that wait for their restart in company, with the pause before it."""
        self._recovery: asyncio.Task[None] | None = None

    def ended(self, child: Cell, failure: BaseException | None) -> bool:
        """Return whether the child, whose life ended by itself or by a failure, is to wait for its release.

        If the intensity is exceeded, the failure is escalated and it is not.
        """
        if child.restart is Restart.TEMPORARY or (child.restart is Restart.TRANSIENT and failure is None):
            if failure is not None:
                logger.opt(exception=failure).error("{} failed and is temporary: it is not restarted", child.ref)
            return False
        loop = asyncio.get_running_loop()
        delay = self._budget.next_delay(loop.time())
        what = "stopped itself" if failure is None else "failed"
        log = logger.opt(exception=failure)
        if delay is None:
            log.error("{} {} too often and is not restarted", child.ref, what)
            why = "stopped itself" if failure is None else repr(failure)
            self._escalate(RuntimeError(f"{child.ref} failed beyond its restart budget: {why}"))
            return False
        log.log("INFO" if failure is None else "ERROR", "{} {}; restarting in {:.2f} s", child.ref, what, delay)
        if self._terms.strategy is Strategy.ONE_FOR_ONE:
            loop.call_later(delay, child.release)
        else:
            self._fallen[child] = delay
            if self._recovery is None:
                self._recovery = loop.create_task(self._recover(), name=f"supervisor of {child.ref}")
        return True

    def forget(self, child: Cell) -> None:
        """Take note that a child has ended for good."""
        if self.children.get(child.ref.path) is child:
            del self.children[child.ref.path]
        self._fallen.pop(child, None)

    async def _recover(self) -> None:
        """Restart groups of siblings, one group after the other, until all are well."""
        try:
            while self._fallen:
                failed, delay = next(iter(self._fallen.items()))
                group = restarted_with(self._terms.strategy, list(self.children.values()), failed)
                for sibling in reversed(group):
                    await sibling.recall(GRACE)
                await asyncio.sleep(delay)
                for sibling in group:
                    # One that failed while it was recalled is served with the others.
                    self._fallen.pop(sibling, None)
                    sibling.release()
                self._fallen.pop(failed, None)
        finally:
            self._recovery = None

    async def stop_children(self, *, drain: bool) -> None:
        """End all children: at once where they are independent, else the last first, each before the one before it.

        Draining, they first handle what is queued.
        """
        while self.children:
            await asyncio.wait([cell.done for cell in self.begin_stop(drain=drain)])

    def begin_stop(self, *, drain: bool) -> list[Cell]:
        """Stop those children that are to end next, and return them."""
        if self._recovery is not None:
            self._recovery.cancel()
        cells = list(reversed(self.children.values()))
        if self._terms.strategy is not Strategy.ONE_FOR_ONE:
            del cells[1:]
        for cell in cells:
            if drain:
                cell.drain()
            else:
                cell.stop()
        return cells
