"""What a node does to know which peers are alive: the interface of the two protocols, and their messages.

:mod:`runtime.cluster.mesh` pings every peer, :mod:`runtime.cluster.swim` a few at random. Both are pure: events and
times come in, messages to send and changes of state come out. A node answers a ping in whichever protocol it came.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from runtime.actors import Message
from runtime.cluster.detector import PeerState
from runtime.cluster.gossip import Update


class Ping(Message, frozen=True, tag="cluster.ping"):
    """A sign of life that asks for one; answered with :class:`Pong`."""

    node: str
    """The sender."""
    boot: int
    """Of the sender: what an earlier life of it said means nothing."""
    sent: float
    """On the clock of the node that wants to know."""
    origin: str
    """The node that wants to know: the sender, or who asked it to probe."""
    pause: float = 0.0
    """Seconds for which the sender may be silent from now on."""
    updates: tuple[Update, ...] = ()


class Pong(Message, frozen=True, tag="cluster.pong"):
    """The answer to a ping. Whoever pinged for another passes it on."""

    node: str
    """Who was pinged."""
    sent: float
    """As in the ping."""
    origin: str
    through: str = ""
    """Who passed it on, if anyone."""
    updates: tuple[Update, ...] = ()


class PingRequest(Message, frozen=True, tag="cluster.ping_request"):
    """Asks the receiver to ping a suspect for the sender."""

    node: str
    """The sender."""
    sent: float
    """On its clock."""
    target: str
    updates: tuple[Update, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """A peer's new state."""

    node: str
    state: PeerState
    reason: str | None = None
    """Why it is not up."""


class Effects(msgspec.Struct):
    """What follows from an event."""

    sends: list[tuple[str, Message]] = msgspec.field(default_factory=list)
    """Node and message. One that cannot be sent is as good as lost on the way."""
    changes: list[Change] = msgspec.field(default_factory=list)


class RoundTrips:
    """The smoothed round-trip time to each peer, in seconds."""

    def __init__(self) -> None:
        self._smoothed: dict[str, float] = {}

    def measured(self, node: str, seconds: float) -> None:
        """Take note of one round trip."""
        if seconds < 0:
            return  # it is the peer that says when the ping was sent, and this one is wrong
        known = self._smoothed.get(node, seconds)
        # The smoothing of TCP's round-trip time (RFC 6298, 2.3).
        self._smoothed[node] = known + (seconds - known) / 8

    def of(self, node: str) -> float | None:
        """Return the time to a peer; None before it was measured."""
        return self._smoothed.get(node)

    def forget(self, node: str) -> None:
        """Drop a peer."""
        self._smoothed.pop(node, None)


class Liveness(ABC):
    """One node's view of who is alive. Times are in seconds on the node's monotonic clock.

    A peer that it found down stays so until it is removed, or proves to be a later life, or itself denies it.
    """

    @abstractmethod
    def add(self, node: str, boot: int, now: float) -> None:
        """A session with a peer begins: it is up."""

    @abstractmethod
    def remove(self, node: str) -> None:
        """The session is over."""

    @abstractmethod
    def heard(self, node: str, at: float) -> None:
        """A frame of any kind came from a peer at this time."""

    @abstractmethod
    def pausing(self, seconds: float, now: float) -> Effects:
        """Announce that this node may be silent for a while; zero takes it back."""

    @abstractmethod
    def tick(self, now: float) -> Effects:
        """Do what is due. To be called once a heartbeat."""

    @abstractmethod
    def receive(self, message: Ping | Pong | PingRequest, now: float) -> Effects:
        """Act on a message."""

    @abstractmethod
    def phi(self, node: str, now: float) -> float | None:
        """Return how unlikely a peer's silence is; None where that is not the measure."""

    @abstractmethod
    def rtt(self, node: str) -> float | None:
        """Return the smoothed round-trip time in seconds; None before it was measured."""
