"""Whether a silent peer is still there: a pure machine from events and times to a state.

Any frame from the peer is a sign of life. A node that was itself held up (its ticks came late: the event loop was
busy, the process was stopped) has not listened, so it does not count that time as the peer's silence. A peer that
announced a pause is not expected to speak before its end.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PeerState(StrEnum):
    """What a node believes of a peer."""

    UP = "up"
    SUSPECT = "suspect"
    """It has been silent for longer than usual. Nothing is done about it but to say so."""
    DOWN = "down"


class DetectorSettings(msgspec.Struct, frozen=True):
    """Times of the detector, in seconds."""

    heartbeat: float = 0.5
    """How often the peer speaks when it has nothing to say, and how often :meth:`FailureDetector.tick` is called."""
    suspect: float = 5.0
    """Silence after which a peer is suspect."""
    down: float = 15.0
    """Silence after which it is down."""
    longest_pause: float = 300.0
    """What an announced pause is cut to."""


class FailureDetector:
    """Judges one session with one peer. Times are in seconds on one monotonic clock."""

    def __init__(self, settings: DetectorSettings, now: float) -> None:
        self._settings = settings
        self._state = PeerState.UP
        self._heard = now
        self._ticked = now
        self._forgiven = 0.0
        """Of the time since the peer was heard, how much this node was not listening."""
        self._paused_until = now

    @property
    def state(self) -> PeerState:
        """The state after the last event."""
        return self._state

    def silence(self, now: float) -> float:
        """Return for how long the peer has been silent without an excuse."""
        return max(0.0, now - max(self._heard, self._paused_until) - self._forgiven)

    def heard(self, at: float) -> None:
        """Take note that a frame came at this time."""
        if at > self._heard:
            self._heard = at
            self._forgiven = 0.0

    def pause(self, now: float, seconds: float) -> None:
        """Expect nothing of the peer for a while, because it said so; zero takes it back."""
        self._paused_until = now + min(max(0.0, seconds), self._settings.longest_pause)

    def tick(self, now: float) -> PeerState | None:
        """Judge the peer; return its state if it has changed. ``DOWN`` is final: a new session gets a new detector."""
        late = now - self._ticked - self._settings.heartbeat
        if late > self._settings.heartbeat:
            self._forgiven += late
        self._ticked = now
        if self._state is PeerState.DOWN:
            return None
        silence = self.silence(now)
        if silence >= self._settings.down:
            state = PeerState.DOWN
        elif silence >= self._settings.suspect:
            state = PeerState.SUSPECT
        else:
            state = PeerState.UP
        if state is self._state:
            return None
        self._state = state
        return state
