"""The seeded network: what happens to frames between simulated nodes.

A connection stays what TCP makes of it: frames arrive whole, in order and once. So what is lost underneath shows as
delay, and a partition as silence; both are computed as a sender's kernel does it, with the retransmission timeout of
RFC 6298 (200 ms at least, as on Linux) that doubles each time. The lanes of a link are connections of their own, and
overtake each other.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

import msgspec

from runtime.testing.simulation.trace import Trace
from runtime.wire.memory import Route, Weather, Wires

RETRANSMISSION_TIMEOUT = 0.2
"""Seconds until what was not acknowledged is sent again; Linux's least."""
LONGEST_TIMEOUT = 120.0
"""What doubling it ends at."""
CONNECT_TIMEOUT = 1.0
"""The same for an attempt to connect, and how often it is made: Linux gives up after the seventh."""
CONNECT_ATTEMPTS = 7
PACKET = 1448
"""Bytes of a frame in one Ethernet packet; each is lost on its own."""


class Conditions(msgspec.Struct, frozen=True):
    """How one direction between two hosts is. Times are in seconds."""

    latency: float = 0.0005
    """From one host to the other, at least."""
    jitter: float = 0.0005
    """The most that is added, evenly distributed, to each frame on its own."""
    loss: float = 0.0
    """The part of packets that are lost; in [0, 1)."""
    bandwidth: float = 125e6
    """Bytes a second, which all connections share in the order in which they send. Gigabit Ethernet by default."""


class _Stream:
    """One direction of one connection."""

    def __init__(self) -> None:
        self.unsent: deque[tuple[int, Callable[[], None]]] = deque()
        """What waits for the retransmission of its head to get through."""
        self.timeout = RETRANSMISSION_TIMEOUT


class SeededWeather(Weather):
    """Delays, loses and holds what hosts send each other. Everything random about it comes from its seed."""

    def __init__(self, random: Random, trace: Trace, conditions: Conditions) -> None:
        self.wires: Wires
        """The wires that this is the weather of; set once, by the simulation."""
        self.conditions = conditions
        """Between hosts for which there are no others."""
        self.between: dict[tuple[str, str], Conditions] = {}
        """From the first host to the second."""
        self.reading: dict[str, float] = {}
        """Bytes a second that a host reads, where it is slow."""
        self._random = random
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        # The network is nobody's process: it goes on while a node is frozen.
        self._context = contextvars.Context()
        self._blocked: set[tuple[str, str]] = set()
        self._off: set[str] = set()
        self._streams: dict[Route, _Stream] = {}
        self._free: dict[tuple[str, str], float] = {}
        """When a direction between two hosts will have sent all that it was given."""
        self._read: dict[str, float] = {}
        """When a slow host will have read all that it was sent."""
        self._opened = 0
        self._former: dict[str, int] = {}
        """The last connection, by number, that was opened in a host's former lives."""

    # -- what a simulation does to it -------------------------------------------------------------------------------

    def block(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Let nothing through from the first to the second of each pair."""
        self._blocked.update(pairs)

    def unblock(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """Take back what was blocked; all of it by default. What was held goes on at its next retransmission."""
        if pairs is None:
            self._blocked.clear()
        else:
            self._blocked.difference_update(pairs)

    def power_off(self, host: str) -> None:
        """A host takes nothing any more and answers nothing."""
        self._off.add(host)

    def forget_life(self, host: str) -> None:
        """The connections that a host has so far are gone with its memory: who uses them is told so, if it is on."""
        self._former[host] = self._opened

    def power_on(self, host: str) -> None:
        """A host answers again."""
        self._off.discard(host)

    # -- the interface of the wires ---------------------------------------------------------------------------------

    def opens(self, route: Route, arrive: Callable[[], None]) -> None:
        self._opened = max(self._opened, route.connection)
        self._trace.frame(self._loop.time(), f"{route.source} -> {route.target} #{route.connection} connect")
        self._open(route, arrive, 0)

    def carry(self, route: Route, size: int, arrive: Callable[[], None]) -> None:
        direction = "" if route.dialled else " back"
        self._trace.frame(
            self._loop.time(), f"{route.source} -> {route.target} #{route.connection}{direction} {size} bytes"
        )
        stream = self._streams.get(route)
        if stream is None:
            stream = self._streams[route] = _Stream()
        stream.unsent.append((size, arrive))
        if len(stream.unsent) == 1:
            self._send(route, stream)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _is_open(self, source: str, target: str) -> bool:
        return (source, target) not in self._blocked and target not in self._off and source not in self._off

    def _send(self, route: Route, stream: _Stream) -> None:
        if self._is_stale(route) and route.target not in self._off:
            if self._is_open(route.source, route.target):
                # The kernel of a machine that was started again has never heard of the connection, and says so.
                stream.unsent.clear()
                self._later(self._flight(route.source, route.target, 0), lambda: self.wires.reset(route))
                return
        elif self._is_open(route.source, route.target):
            stream.timeout = RETRANSMISSION_TIMEOUT
            while stream.unsent:
                size, arrive = stream.unsent.popleft()
                self._later(self._flight(route.source, route.target, size), arrive)
            return
        timeout, stream.timeout = stream.timeout, min(stream.timeout * 2, LONGEST_TIMEOUT)
        self._later(timeout, lambda: self._send(route, stream))

    def _is_stale(self, route: Route) -> bool:
        return route.connection <= self._former.get(route.target, 0)

    def _flight(self, source: str, target: str, size: int) -> float:
        """Return the seconds from now until a frame is with its reader."""
        now = self._loop.time()
        path = (source, target)
        conditions = self.between.get(path, self.conditions)
        sent = self._free[path] = max(now, self._free.get(path, 0.0)) + size / conditions.bandwidth
        delay = conditions.latency + self._random.random() * conditions.jitter
        arrival = sent + delay + self._lost_time(-(-size // PACKET) or 1, conditions)
        if target in self.reading:
            arrival = self._read[target] = max(arrival, self._read.get(target, 0.0)) + size / self.reading[target]
        return arrival - now

    def _lost_time(self, packets: int, conditions: Conditions) -> float:
        """Return the seconds that retransmissions add until the last of the packets is through."""
        timeout, lost = RETRANSMISSION_TIMEOUT + 2 * conditions.latency, 0.0
        while conditions.loss:
            packets = sum(self._random.random() < conditions.loss for _ in range(packets))
            if not packets:
                break
            lost += timeout
            timeout *= 2
        return lost

    def _open(self, route: Route, arrive: Callable[[], None], attempt: int) -> None:
        there, back = (route.source, route.target), (route.target, route.source)
        if self._is_open(*there) and self._is_open(*back):
            self._later(self._flight(*there, 0) + self._flight(*back, 0), arrive)
        elif attempt < CONNECT_ATTEMPTS:
            self._later(CONNECT_TIMEOUT * 2.0**attempt, lambda: self._open(route, arrive, attempt + 1))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._loop.call_later(seconds, act, context=self._context)
