"""Liveness in a full mesh: every peer is pinged at each heartbeat, and has a failure detector of its own."""

from __future__ import annotations

import random

from runtime.actors import Message
from runtime.cluster.detector import DetectorSettings, FailureDetector, PeerState
from runtime.cluster.liveness import Change, Effects, Liveness, Ping, PingRequest, Pong, RoundTrips


class _Peer:
    """What is kept of one peer."""

    def __init__(self, boot: int, detector: FailureDetector) -> None:
        self.boot = boot
        self.detector = detector
        self.asked: tuple[str, ...] = ()
        """Who is probing it for this node."""
        self.vouchers: set[str] = set()
        """Which of them have reached it."""


class Mesh(Liveness):
    """Pings everybody. A suspect is probed by others before it is given up."""

    def __init__(self, node: str, boot: int, settings: DetectorSettings, chance: random.Random) -> None:
        """``chance`` chooses who is asked to probe."""
        self._node = node
        self._boot = boot
        self._settings = settings
        self._chance = chance
        self._peers: dict[str, _Peer] = {}
        self._trips = RoundTrips()
        self._paused_until = float("-inf")

    def add(self, node: str, boot: int, now: float) -> None:
        """Start a detector for the session."""
        self._peers[node] = _Peer(boot, FailureDetector(self._settings, now))

    def remove(self, node: str) -> None:
        """End it."""
        self._peers.pop(node, None)
        self._trips.forget(node)

    def heard(self, node: str, at: float) -> None:
        """Any frame is a sign of life."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.detector.heard(at)

    def pausing(self, seconds: float, now: float) -> Effects:
        """Ping everybody with the announcement."""
        self._paused_until = now + seconds
        return Effects([(name, self._ping(now)) for name in self._peers])

    def tick(self, now: float) -> Effects:
        """Judge every peer, and ping it."""
        effects = Effects()
        for name, peer in self._peers.items():
            judgement = peer.detector.tick(now)
            if judgement.probe:
                peer.vouchers.clear()
                peer.asked = self._others(name)
                request = PingRequest(self._node, now, name)
                effects.sends += [(other, request) for other in peer.asked]
            if judgement.changed is not None:
                effects.changes.append(Change(name, judgement.changed, _reason(peer, judgement.changed, now)))
            effects.sends.append((name, self._ping(now)))
        return effects

    def receive(self, message: Ping | Pong | PingRequest, now: float) -> Effects:
        """Answer a ping, take an answer or pass it on, or ping for another."""
        effects = Effects()
        match message:
            case Ping(node, boot, sent, origin, pause):
                peer = self._peers.get(node)
                if peer is not None and peer.boot == boot and origin == node:
                    peer.detector.pause(now, pause)
                effects.sends.append((node, Pong(self._node, sent, origin)))
                if origin != node and origin in self._peers:
                    # The accused says itself that it is alive, in case only its silence was the trouble.
                    effects.sends.append((origin, self._ping(now)))
            case Pong(node, sent, origin, through) if origin == self._node:
                self._ponged(node, sent, through, now)
            case Pong(node, sent, origin) if origin in self._peers:
                effects.sends.append((origin, Pong(node, sent, origin, self._node)))
            case PingRequest(node, sent, target) if target in self._peers:
                effects.sends.append((target, self._ping(sent, node)))
            case _:
                pass  # about a peer that is no longer linked
        return effects

    def phi(self, node: str, now: float) -> float | None:
        """Return φ of the peer's silence."""
        peer = self._peers.get(node)
        return peer.detector.phi(now) if peer else None

    def rtt(self, node: str) -> float | None:
        """Return the time from a ping to its answer."""
        return self._trips.of(node)

    def _ponged(self, node: str, sent: float, through: str, now: float) -> None:
        peer = self._peers.get(node)
        if peer is None:
            return
        if not through:
            self._trips.measured(node, now - sent)
        elif peer.detector.state is PeerState.SUSPECT:
            peer.vouchers.add(through)
            peer.detector.vouch()

    def _ping(self, sent: float, origin: str = "") -> Message:
        pause = max(0.0, self._paused_until - sent) if not origin else 0.0
        return Ping(self._node, self._boot, sent, origin or self._node, pause)

    def _others(self, suspect: str) -> tuple[str, ...]:
        up = [name for name, peer in self._peers.items() if peer.detector.state is PeerState.UP and name != suspect]
        return tuple(sorted(self._chance.sample(up, min(self._settings.probes, len(up)))))


def _reason(peer: _Peer, state: PeerState, now: float) -> str | None:
    if state is PeerState.UP:
        return None
    detector = peer.detector
    silence = f"no sign of life for {detector.silence(now):.1f} s (φ {detector.phi(now):.1f})"
    asked = ", ".join(peer.asked)
    if state is PeerState.SUSPECT:
        return f"{silence}; asking {asked}" if asked else f"{silence}; nobody else is there to ask"
    if peer.vouchers:
        return f"{silence}, though {', '.join(sorted(peer.vouchers))} could reach it: the link to it is broken"
    return f"{silence}; {asked} could not reach it either" if asked else f"{silence}; nobody else was there to ask"
