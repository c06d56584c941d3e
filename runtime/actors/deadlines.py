"""One heap of deadlines and one timer for all asks, instead of a timer each."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable


class Deadlines:
    """Calls ``expired(key)`` when the time of a key is up."""

    def __init__(self, expired: Callable[[int], None]) -> None:
        self._expired = expired
        self._heap: list[tuple[float, int]] = []
        self._live: dict[int, float] = {}
        """Deadline of each key; a heap entry that says otherwise is a leftover."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._live)

    def add(self, key: int, when: float) -> None:
        """Start the clock of a key, or set it anew; ``when`` is on the event loop's clock."""
        self._live[key] = when
        heapq.heappush(self._heap, (when, key))
        if self._timer is None or when < self._timer.when():
            self._arm()

    def discard(self, key: int) -> None:
        """Stop the clock of a key. Its heap entry is dropped when it comes to the top, or when leftovers abound."""
        self._live.pop(key, None)
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._live):
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_live(self, entry: tuple[float, int]) -> bool:
        when, key = entry
        return self._live.get(key) == when

    def _arm(self) -> None:
        self.close()
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_live(entry):
                del self._live[entry[1]]
                self._expired(entry[1])
        self._arm()
