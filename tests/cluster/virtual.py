"""A cluster of pure liveness protocols in virtual time: no actors, no sockets, a queue of what happens next.

Delay, loss, stalls, crashes and one-way blocks are drawn from a seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import msgspec

from runtime.actors import Message
from runtime.cluster.detector import DetectorSettings, PeerState
from runtime.cluster.liveness import Effects, Liveness
from runtime.cluster.mesh import Mesh
from runtime.cluster.swim import Swim

SETTINGS = DetectorSettings()
BOOT = 1000


class Weather(msgspec.Struct, frozen=True):
    """What the network and the machines do."""

    delay: float = 0.001
    jitter: float = 0.0
    """Seconds that are added to the delay of a message at most."""
    loss: float = 0.0
    stall: float = 0.0
    """Seconds in which a node stands still, every ten seconds; each at another time."""
    late: float = 0.0
    """Seconds that a tick is late at most."""
    bulk: float = 0.0
    """Seconds between the frames of a transfer from each node to each other; 0 for none."""


class Seen(msgspec.Struct, frozen=True):
    """A change in the view of one node."""

    at: float
    observer: str
    subject: str
    state: PeerState
    reason: str | None


Core = Callable[[str, random.Random], Liveness]


def mesh(node: str, chance: random.Random) -> Liveness:
    return Mesh(node, BOOT, SETTINGS, chance)


def swim(node: str, chance: random.Random) -> Liveness:
    return Swim(node, BOOT, SETTINGS, chance, 0.0)


class VirtualCluster:
    """Nodes that all know each other. Time passes in :meth:`run`."""

    def __init__(self, core: Core, size: int, weather: Weather, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated
        self.weather = weather
        self.now = 0.0
        self.seen: list[Seen] = []
        self.sent = dict.fromkeys(names(size), 0)
        """Messages that each node has sent."""
        self.crashed: set[str] = set()
        self.blocked: set[tuple[str, str]] = set()
        self.stalled_until: dict[str, float] = {}
        chances = {name: random.Random(f"{seed} {name}") for name in self.sent}  # noqa: S311 - to be repeated
        self.nodes = {name: core(name, chances[name]) for name in self.sent}
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, str, str, Message | None]] = []
        self._phase = {name: self._chance.random() * 10 for name in self.nodes}
        for name, node in self.nodes.items():
            for other in self.nodes:
                if other != name:
                    node.add(other, BOOT, 0.0)
                    if weather.bulk:
                        self._at(self._chance.random() * weather.bulk, name, other, None)
            self._at(self._chance.random() * SETTINGS.heartbeat, name, "", None)

    def run(self, seconds: float) -> list[Seen]:
        """Let time pass; return what was seen meanwhile."""
        end, first = self.now + seconds, len(self.seen)
        while self._queue[0][0] <= end:
            at, _, name, source, message = heapq.heappop(self._queue)
            if name in self.crashed:
                continue
            awake = self._awake(name, at)
            if awake > at:
                self._at(awake, name, source, message)
                continue
            self.now = at
            self._happen(name, source, message)
        self.now = end
        return self.seen[first:]

    def apply(self, name: str, effects: Effects) -> None:
        """Let the effects of an event at a node take place."""
        for change in effects.changes:
            self.seen.append(Seen(self.now, name, change.node, change.state, change.reason))
        for target, message in effects.sends:
            self.sent[name] += 1
            if (name, target) not in self.blocked and self._chance.random() >= self.weather.loss:
                travel = self.weather.delay + self._chance.random() * self.weather.jitter
                self._at(self.now + travel, target, name, message)

    def _happen(self, name: str, source: str, message: Message | None) -> None:
        node = self.nodes[name]
        if message is not None:
            node.heard(source, self.now)
            self.apply(name, node.receive(message, self.now))  # type: ignore[arg-type]  # of whatever kind it was sent
        elif source:
            if source not in self.crashed and (source, name) not in self.blocked:
                node.heard(source, self.now)
                self._at(max(self.now + self.weather.bulk, self._awake(source, self.now)), name, source, None)
        else:
            self.apply(name, node.tick(self.now))
            late = self._chance.random() * self.weather.late if self._chance.random() < 0.1 else 0.0
            self._at(self.now + SETTINGS.heartbeat + late, name, "", None)

    def _awake(self, name: str, at: float) -> float:
        """When a node next does anything."""
        at = max(at, self.stalled_until.get(name, 0.0))
        into = (at - self._phase[name]) % 10
        return at + self.weather.stall - into if into < self.weather.stall else at

    def _at(self, at: float, name: str, source: str, message: Message | None) -> None:
        heapq.heappush(self._queue, (at, next(self._numbers), name, source, message))


def names(size: int) -> list[str]:
    return [f"n{i}" for i in range(size)]


def states(seen: list[Seen], observer: str, subject: str) -> list[PeerState]:
    """The states that one node went through in the view of another."""
    return [each.state for each in seen if (each.observer, each.subject) == (observer, subject)]


def downs(seen: list[Seen]) -> list[Seen]:
    return [each for each in seen if each.state is PeerState.DOWN]


def quantile(values: list[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed."""
    return sorted(values)[max(0, -int(-len(values) * share // 1) - 1)]
