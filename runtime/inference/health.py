"""Whether a node can compute: a watch over its compute thread.

A device or a driver may hang. The event loop goes on then, and with it the heartbeats, so that no peer takes the node
for lost. So the node says itself that it is unhealthy: it is given no layers, the sequences that it works on fail and
go on elsewhere, and new work is refused at once. When the thread answers again, the node is as good as any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from loguru import logger

from runtime.cluster import OwnLag
from runtime.errors import NodeUnhealthy
from runtime.inference.compute import ComputeThread, InHand

TICK = 0.25
"""Seconds between two looks at the thread."""


class PartWatch:
    """Counts how long the thread is at one part of a job, without the time in which nobody looked. Pure.

    A process that was stopped, or a machine that slept, was so as a whole: its compute thread is not late by that.
    """

    def __init__(self, now: float) -> None:
        self._lag = OwnLag(TICK, now)
        self._number: int | None = None
        self._seconds = 0.0

    def tick(self, in_hand: InHand | None, now: float) -> float | None:
        """Return for how many seconds the thread has been at a part that should have ended; None if it is in time."""
        watched, _ = self._lag.tick(now)
        if in_hand is None:
            self._number = None
            return None
        if in_hand.number != self._number:
            self._number, self._seconds = in_hand.number, 0.0
            return None
        self._seconds += watched
        return None if self._seconds < in_hand.allowed else self._seconds


class ComputeHealth:
    """Watches a compute thread.

    Args:
        node: the name of the node, for the text of the fault.
        compute: the thread.
        changed: called at each change of :attr:`reason`, before the jobs hear of it: peers should know first.
    """

    def __init__(self, node: str, compute: ComputeThread, changed: Callable[[], None]) -> None:
        self.reason: str | None = None
        """Why the node cannot compute; None if it can."""
        self._node = node
        self._compute = compute
        self._changed = changed
        self._stuck_at = 0

    async def watch(self) -> None:
        """Look at the thread for ever."""
        watch = PartWatch(monotonic())
        while True:
            await asyncio.sleep(TICK)
            in_hand = self._compute.in_hand()
            late = watch.tick(in_hand, monotonic())
            if self.reason is None:
                if late is not None and in_hand is not None:
                    self._give_up(in_hand, late)
            elif in_hand is None or in_hand.number != self._stuck_at:
                self._resume()

    def _give_up(self, in_hand: InHand, seconds: float) -> None:
        self._stuck_at = in_hand.number
        self.reason = f"{in_hand.what} has not come back from the compute thread for {seconds:.1f} s"
        logger.error("this node is unhealthy: {}; it computes nothing until the thread answers", self.reason)
        self._changed()
        self._compute.give_up(
            NodeUnhealthy(f"node {self._node} is unhealthy: {self.reason}; restart it if it stays so")
        )

    def _resume(self) -> None:
        self.reason = None
        logger.info("this node is healthy again: the compute thread answers")
        self._compute.resume()
        self._changed()
