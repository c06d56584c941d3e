"""One heap of deadlines and one timer for all asks, instead of a timer each."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

LEFTOVERS = 1024
"""Entries in the heap below which leftovers are not worth looking for."""


class Deadlines:
    """Calls ``expired(key)`` when the time of a key is up."""

    def __init__(self, expired: Callable[[int], None]) -> None:
        self._expired = expired
        self._heap: list[tuple[float, int]] = []
        self._live: dict[int, float] = {}
        """Deadline of each key; a heap entry that says otherwise is a leftover."""
        self._sweep_at = LEFTOVERS
        """Length of the heap at which leftovers are dropped."""
        self._timer: asyncio.TimerHandle | None = None
        self._next = float("inf")
        """When the timer fires."""

    def __len__(self) -> int:
        return len(self._live)

    def add(self, key: int, when: float) -> None:
        """Start the clock of a key, or set it anew; ``when`` is on the event loop's clock."""
        self._live[key] = when
        heapq.heappush(self._heap, (when, key))
        if when < self._next:
            self._arm()

    def discard(self, key: int) -> None:
        """Stop the clock of a key. Its heap entry is dropped when it comes to the top, or when leftovers abound."""
        self._live.pop(key, None)
        if len(self._heap) > self._sweep_at:
            self._sweep()

    def close(self) -> None:
        """Stop the timer."""
        self._next = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        live = self._live
        self._heap = [entry for entry in self._heap if live.get(entry[1]) == entry[0]]
        heapq.heapify(self._heap)
        self._sweep_at = max(LEFTOVERS, 4 * len(self._heap))

    def _arm(self) -> None:
        self.close()
        while self._heap and self._live.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._heap:
            self._next = self._heap[0][0]
            self._timer = asyncio.get_running_loop().call_at(self._next, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            when, key = heapq.heappop(self._heap)
            if self._live.get(key) == when:
                del self._live[key]
                self._expired(key)
        self._arm()
