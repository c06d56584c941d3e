"""When a generation that was lost is tried again, and when it is given up. Pure: times come in, in seconds."""

from __future__ import annotations

from runtime.errors import RuntimeFault

GRACE_SECONDS = 12.0
"""After the last sign of a generation: a frozen node is called down after 6 to 8 of them."""
LEAST_SECONDS = 4.0
"""After the loss is noticed, however late that is: the survivors free the memory of what was lost, and a node that was
only cut off may be back."""
FIRST_WAIT = 0.1
LONGEST_WAIT = 1.0


class Patience:
    """Counts the losses of one generation since it last got on."""

    def __init__(self, now: float) -> None:
        self._progress = now
        self._until: float | None = None
        self._tries = 0
        self._prolonged = False

    def got_on(self, now: float) -> None:
        """There is a new token: what was lost before is mended."""
        self._progress = now
        self._until = None
        self._tries = 0
        self._prolonged = False

    def prolong(self, now: float) -> None:
        """A node hung while it was to take over, which is noticed late: there is another chance without it, once."""
        if self._until is not None and not self._prolonged:
            self._prolonged = True
            self._until = max(self._until, now + LEAST_SECONDS)

    def next_try(self, now: float) -> float | None:
        """Return the seconds to wait before the next try, none before the first; None if it is time to give up."""
        if self._until is None:
            self._until = max(self._progress + GRACE_SECONDS, now + LEAST_SECONDS)
        wait = 0.0 if self._tries == 0 else min(FIRST_WAIT * 2.0 ** (self._tries - 1), LONGEST_WAIT)
        if self._tries and now + wait > self._until:
            return None
        self._tries += 1
        return wait


def given_up(tokens: int, lost: RuntimeFault, refusal: RuntimeFault) -> RuntimeFault:
    """Return what the client is told: why its text is not complete, and why nobody could go on with it."""
    why = lost.message if refusal is lost else f"{lost.message}) and could not be resumed ({refusal.message}"
    return type(refusal)(f"the generation was interrupted after {tokens} tokens ({why}); send the request again")
