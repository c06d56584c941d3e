"""One heap of deadlines and one timer for all asks, instead of a timer each."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection

LEFTOVERS = 1024
"""Entries in the heap below which leftovers are not worth looking for."""


class Deadlines:
    """Calls ``expired(key)`` when the time of a key is up, if the key is live then.

    Args:
        live: the keys that are live. A key that has left it, and is never to come back, is a leftover in the heap: it
            is dropped when it comes to the top, or by a :meth:`sweep`.
        expired: called at most once with a key.
    """

    def __init__(self, live: Collection[int], expired: Callable[[int], None]) -> None:
        self._live = live
        self._expired = expired
        self._heap: list[tuple[float, int]] = []
        self._sweep_at = LEFTOVERS
        """Length of the heap at which leftovers are dropped."""
        self._timer: asyncio.TimerHandle | None = None
        self._next = float("inf")
        """When the timer fires."""

    def add(self, key: int, when: float) -> None:
        """Start the clock of a live key; ``when`` is on the event loop's clock."""
        heap = self._heap
        heapq.heappush(heap, (when, key))
        if when < self._next:
            self._arm()
        elif len(heap) > self._sweep_at:
            self.sweep()

    def close(self) -> None:
        """Stop the timer."""
        self._next = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sweep(self) -> None:
        """Drop the leftovers."""
        live = self._live
        self._heap = [entry for entry in self._heap if entry[1] in live]
        heapq.heapify(self._heap)
        # Each entry is looked at a bounded number of times: half of the next ones to be looked at will be new.
        self._sweep_at = max(LEFTOVERS, 2 * len(self._heap))

    def _arm(self) -> None:
        self.close()
        while self._heap and self._heap[0][1] not in self._live:
            heapq.heappop(self._heap)
        if self._heap:
            self._next = self._heap[0][0]
            self._timer = asyncio.get_running_loop().call_at(self._next, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            key = heapq.heappop(self._heap)[1]
            if key in self._live:
                self._expired(key)
        self._arm()
