"""Whether a silent peer is still there: a pure machine from events and times to a state.

Any frame from the peer is a sign of life. How long a silence may last is learnt from the gaps before it
(:mod:`runtime.cluster.phi`). A silence that is too long makes the peer *suspect*, which is not yet *down*: others are
asked to probe it, and while any of them reaches it, it is not given up. The peer itself refutes the suspicion with any
frame. A peer that announced a pause is not expected to speak before its end.

A node that was itself held up (:mod:`runtime.cluster.lag`) does not count that time as the peer's silence before it
has listened for a whole heartbeat: what came meanwhile is read by then. If it was held up for longer than a peer may
be, not even then, because a network that was not answered for so long is slow to send again.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from runtime.cluster.lag import OwnLag
from runtime.cluster.phi import Gaps, phi


class PeerState(StrEnum):
    """What a node believes of a peer."""

    UP = "up"
    SUSPECT = "suspect"
    """It has been silent for longer than it usually is. It is still used, and others are asked to probe it."""
    DOWN = "down"


class DetectorSettings(msgspec.Struct, frozen=True):
    """Numbers of the detector; times are in seconds. The defaults are Akka's where Akka has them."""

    heartbeat: float = 0.5
    """How often the peer speaks when it has nothing to say, and how often :meth:`FailureDetector.tick` is called."""
    phi: float = 8.0
    """The φ at which a peer is suspect."""
    least_deviation: float = 0.2
    """Gaps are taken to stray by no less than this, however regular they were."""
    acceptable_pause: float = 3.0
    """Added to the mean gap: a collection of garbage or a busy moment is no reason for suspicion."""
    longest_silence: float = 5.5
    """Silence after which a peer is suspect whatever its gaps were, so that a crash is noticed in bounded time."""
    probes: int = 3
    """How many others are asked to probe a suspect."""
    probe_timeout: float = 1.5
    """How long they have. When none of them has reached it by then, it is down."""
    longest_vouched: float = 8.5
    """Silence after which a peer that others do reach is down nevertheless: the link to it is broken, not the peer.
    It is longer than silence and probing take where nobody vouches, and short enough for generations to go on."""
    longest_pause: float = 300.0
    """What an announced pause is cut to."""
    window: int = 200
    """How many gaps are remembered."""


class Judgement(msgspec.Struct, frozen=True):
    """What came of a tick."""

    changed: PeerState | None = None
    """The peer's new state, if it has changed."""
    probe: bool = False
    """Whether others should now be asked to probe the peer."""


class FailureDetector:
    """Judges one session with one peer. Times are in seconds on one monotonic clock."""

    def __init__(self, settings: DetectorSettings, now: float) -> None:
        self._settings = settings
        self._state = PeerState.UP
        self._gaps = Gaps(settings.heartbeat, settings.window)
        self._lag = OwnLag(settings.heartbeat, now)
        self._heard = now
        self._forgiven = 0.0
        """Of the time since the peer was heard, how much is not counted as silence."""
        self._doubt = 0.0
        """Of that time, how much is not counted yet, because this node has only just come back."""
        self._gap_began = now
        self._gap_excused = 0.0
        """Of the time since then, how much does not belong to the gap."""
        self._paused_until = now
        self._round_began = now
        """Since when the others have been probing, moved by what is forgiven."""
        self._round_doubt = 0.0
        self._vouched = False
        """Whether any of them has reached the peer in this round."""

    @property
    def state(self) -> PeerState:
        """The state after the last event."""
        return self._state

    def silence(self, now: float) -> float:
        """Return for how long the peer has been silent without an excuse."""
        return max(0.0, now - max(self._heard, self._paused_until) - self._forgiven - self._doubt)

    def phi(self, now: float) -> float:
        """Return how unlikely the silence is, from 0 to 300."""
        settings, gaps = self._settings, self._gaps
        deviation = max(gaps.deviation, settings.least_deviation)
        return phi(self.silence(now), gaps.mean + settings.acceptable_pause, deviation)

    def heard(self, at: float) -> None:
        """Take note that a frame came at this time."""
        if at <= self._heard:
            return
        self._heard = at
        self._forgiven = self._doubt = 0.0
        # A burst is one sign of life: gaps of microseconds would say that the peer never pauses.
        if at - self._gap_began >= self._settings.heartbeat / 2:
            self._gaps.add(max(0.0, at - self._gap_began - self._gap_excused))
            self._gap_began = at
            self._gap_excused = 0.0

    def pause(self, now: float, seconds: float) -> None:
        """Expect nothing of the peer for a while, because it said so; zero takes it back."""
        until = now + min(max(0.0, seconds), self._settings.longest_pause)
        if seconds > 0 or self._paused_until > now:
            # What it does while it pauses says nothing about its usual gaps.
            self._gap_began = max(now, until)
            self._gap_excused = 0.0
            self._paused_until = until

    def vouch(self) -> None:
        """Take note that another node has just reached the peer. Without a suspicion it means nothing."""
        self._vouched = self._state is PeerState.SUSPECT

    def tick(self, now: float) -> Judgement:
        """Judge the peer. ``DOWN`` is final: a new session gets a new detector."""
        self._excuse(now)
        settings = self._settings
        match self._state:
            case PeerState.UP if self._is_too_silent(now):
                self._begin_round(now)
                return self._become(PeerState.SUSPECT, probe=True)
            case PeerState.SUSPECT if not self._is_too_silent(now):
                return self._become(PeerState.UP)
            case PeerState.SUSPECT:
                if now - self._round_began - self._round_doubt < settings.probe_timeout:
                    return Judgement()
                if not self._vouched or self.silence(now) >= settings.longest_vouched:
                    return self._become(PeerState.DOWN)
                self._begin_round(now)
                return Judgement(probe=True)
            case _:
                return Judgement()

    def _begin_round(self, now: float) -> None:
        self._round_began = now
        self._round_doubt = 0.0
        self._vouched = False

    def _excuse(self, now: float) -> None:
        """Find out whether this node was held up since the last tick."""
        late = self._lag.tick(now)[1]
        # What was heard after it came back is not silence that needs an excuse.
        silent = min(late, max(0.0, now - self._heard))
        self._gap_excused += min(late, max(0.0, now - self._gap_began))
        if not late:
            self._doubt = self._round_doubt = 0.0
        elif late <= self._settings.acceptable_pause:
            self._doubt += silent
            self._round_doubt += late
        else:
            self._forgiven += silent
            self._round_began += late

    def _is_too_silent(self, now: float) -> bool:
        return self.silence(now) >= self._settings.longest_silence or self.phi(now) >= self._settings.phi

    def _become(self, state: PeerState, *, probe: bool = False) -> Judgement:
        self._state = state
        return Judgement(state, probe)
