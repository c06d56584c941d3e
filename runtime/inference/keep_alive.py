"""How long an idle model stays. Pure; times are in seconds since the epoch."""

from __future__ import annotations

from collections import deque

SUBMIT_SECONDS = 30.0
"""How long an idle model stays for a caller that was told it is ready and has yet to submit, whatever else says that
it may go: neither ``keep_alive`` 0 nor another client's unload may take the model away from a request."""


class KeepAlive:
    """What is known of the wishes for one model.

    Args:
        seconds: for which it stays after its last use; negative is for ever.
        now: the time.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self._used = now
        self._expected: deque[float] = deque()
        """Until when to wait for each of the callers that were told that the model is ready."""

    @property
    def expires(self) -> float | None:
        """When it goes if nobody asks for it; None if it does not."""
        return None if self.seconds < 0 else self._used + self.seconds

    def used(self, now: float) -> None:
        """It is in use, or was until now."""
        self._used = now

    def expect(self, now: float) -> None:
        """A caller was told that it is ready."""
        self._expected.append(now + SUBMIT_SECONDS)

    def expect_one_less(self) -> None:
        """One of those has come, or said that it does not."""
        if self._expected:
            self._expected.popleft()

    def left(self, now: float, *, leaving: bool) -> float:
        """Return the seconds that an idle model stays; one that is ``leaving`` does so for expected callers alone."""
        while self._expected and self._expected[0] <= now:
            self._expected.popleft()
        expires = now if leaving else self.expires
        if expires is None:
            return float("inf")
        return max(0.0, expires - now, *(until - now for until in self._expected))
