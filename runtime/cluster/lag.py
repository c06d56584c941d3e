"""How much of the time a node was not listening, because it was itself held up."""

from __future__ import annotations


class OwnLag:
    """Told of each tick of a regular clock, says how late it comes. Times are in seconds on one monotonic clock.

    A tick comes late when the event loop was busy, or the process or the whole machine was stopped. What peers sent
    meanwhile has not been read yet, so that this time says nothing about them.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self._ticked = now

    def tick(self, now: float) -> tuple[float, float]:
        """Return the seconds since the last tick in which the node listened, and those in which it did not.

        A tick that is late by less than the interval is on time.
        """
        elapsed = max(0.0, now - self._ticked)
        self._ticked = max(now, self._ticked)
        late = elapsed - self._interval
        return (self._interval, late) if late > self._interval else (elapsed, 0.0)
