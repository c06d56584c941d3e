"""What nodes tell each other of third ones, carried by messages that are sent anyway."""

from __future__ import annotations

import heapq
import math

import msgspec

from runtime.cluster.detector import PeerState

MOST_UPDATES = 8
"""Updates that one message carries."""
REPEATS = 4
"""An update is passed on this many times the decimal logarithm of the cluster's size, as in HashiCorp's memberlist."""

_RANK = {PeerState.UP: 0, PeerState.SUSPECT: 1, PeerState.DOWN: 2}


class Update(msgspec.Struct, frozen=True, array_like=True):
    """What is said of a node."""

    node: str
    state: PeerState
    incarnation: int
    """Which life of the node, and which word of its own in that life: only the node itself makes it grow."""
    pause: float = 0.0
    """Seconds for which the node announced that it may be silent; only with ``UP``."""

    def overrides(self, state: PeerState, incarnation: int) -> bool:
        """Whether this is news for one who believes ``state`` of ``incarnation`` (SWIM, section 4.2)."""
        return (self.incarnation, _RANK[self.state]) > (incarnation, _RANK[state])


class Gossip:
    """The updates that a node still has to pass on, one for each node spoken of."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[int, Update]] = {}
        """Node to how often its update was sent, and the update."""

    @property
    def waiting(self) -> bool:
        """Whether there is something to pass on."""
        return bool(self._waiting)

    def add(self, update: Update) -> None:
        """Pass an update on, in place of what was said of that node before."""
        self._waiting[update.node] = (0, update)

    def forget(self, node: str) -> None:
        """Say nothing more of a node."""
        self._waiting.pop(node, None)

    def take(self, size: int) -> tuple[Update, ...]:
        """Return what the next message carries, the least sent first, in a cluster of ``size`` nodes."""
        if not self._waiting:
            return ()
        often = math.ceil(REPEATS * math.log10(size + 1))
        chosen = heapq.nsmallest(MOST_UPDATES, self._waiting.items(), key=lambda each: each[1][0])
        for node, (sent, update) in chosen:
            if sent + 1 < often:
                self._waiting[node] = (sent + 1, update)
            else:
                del self._waiting[node]
        return tuple(update for _, (_, update) in chosen)
