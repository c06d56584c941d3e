"""Liveness in a large cluster: each node pings a few others at random, and gossip tells the rest.

After Das, Gupta and Motivala: SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol
(2002), with the suspicion of section 4.2 and the round-robin choice of section 4.3. At each heartbeat a node pings the
next member of a shuffled round. A member that does not answer within a heartbeat is pinged by others too, and when that
brings nothing it is suspect: everybody is told, the accused as well, which denies it with a higher incarnation. A
suspicion that nobody denies in time makes the member down. So a node's load does not grow with the cluster.

Who is a member is not decided here: a member is whom this node has a session with.
"""

from __future__ import annotations

import math
import random

import msgspec

from runtime.cluster.detector import DetectorSettings, PeerState
from runtime.cluster.gossip import Gossip, Update
from runtime.cluster.lag import OwnLag
from runtime.cluster.liveness import Change, Effects, Liveness, Ping, PingRequest, Pong, RoundTrips

SUSPICION = 1.5
"""Heartbeats that a suspicion lasts, times the decimal logarithm of the cluster's size: gossip needs so long to reach
the accused, and its denial to come back."""
SHORTEST_SUSPICION = 4.0
"""Heartbeats that it lasts at least."""
NEWS = 2
"""Members that are pinged besides, at each heartbeat, while there is gossip to pass on."""
REMEMBERED = 256
"""Lost members of which it is known with which incarnation they were down."""


class _Member(msgspec.Struct):
    """What is believed of a member."""

    boot: int
    state: PeerState
    incarnation: int
    heard: float
    suspected: float = 0.0
    """Since when, in listened seconds."""
    reason: str = ""
    """Of the suspicion."""
    paused_until: float = float("-inf")
    buried: bool = False
    """Whether others may believe it down in the session before, which it has still to deny."""


class _Probe(msgspec.Struct):
    """A ping that is not answered yet."""

    sent: float
    began: float
    """In listened seconds."""
    asked: tuple[str, ...] = ()


class Swim(Liveness):
    """Pings some, and believes gossip of the others, but nothing that its own ears contradict."""

    def __init__(self, node: str, boot: int, settings: DetectorSettings, chance: random.Random, now: float) -> None:
        """``chance`` chooses whom to ping and to ask."""
        self._node = node
        self._boot = boot
        self._settings = settings
        self._chance = chance
        self._incarnation = boot
        """Grows with each denial, so that it is above those of every earlier life."""
        self._members: dict[str, _Member] = {}
        self._round: list[str] = []
        """Who is pinged next; the last one first."""
        self._probes: dict[str, _Probe] = {}
        self._suspects: set[str] = set()
        self._buried: dict[str, int] = {}
        self._gossip = Gossip()
        self._trips = RoundTrips()
        self._lag = OwnLag(settings.heartbeat, now)
        self._listened = 0.0
        self._late = 0.0
        """How late the last tick was."""
        self._paused_until = float("-inf")

    # -- events -----------------------------------------------------------------------------------------------------

    def add(self, node: str, boot: int, now: float) -> None:
        """Take a member, which is then pinged some time in the current round."""
        buried = self._buried.pop(node, -1)
        again = buried >= boot
        self._members[node] = _Member(boot, PeerState.UP, buried + 1 if again else boot, now, buried=again)
        self._round.insert(self._chance.randint(0, len(self._round)), node)
        self._gossip.forget(node)

    def remove(self, node: str) -> None:
        """Drop a member; if it is down, only a later incarnation of it will be believed to be up."""
        member = self._members.pop(node, None)
        if member is not None and member.state is PeerState.DOWN:
            self._buried[node] = member.incarnation
            if len(self._buried) > REMEMBERED:
                del self._buried[next(iter(self._buried))]
        self._probes.pop(node, None)
        self._suspects.discard(node)
        self._trips.forget(node)

    def heard(self, node: str, at: float) -> None:
        """A frame that came after a ping is as good as its answer."""
        member = self._members.get(node)
        if member is not None and at > member.heard:
            member.heard = at
            probe = self._probes.get(node)
            if probe is not None and at > probe.sent:
                del self._probes[node]

    def pausing(self, seconds: float, now: float) -> Effects:
        """Tell everybody by gossip, and some members at once."""
        self._paused_until = now + seconds
        self._assert_myself(now, above=self._incarnation)
        effects = Effects()
        for node in self._others():
            self._ping(node, now, effects)
        return effects

    def tick(self, now: float) -> Effects:
        """Follow up the pings that were not answered, end old suspicions, and ping the next member."""
        listened, self._late = self._lag.tick(now)
        self._listened += listened
        effects = Effects()
        for node, probe in list(self._probes.items()):
            self._follow_up(node, probe, now, effects)
        for node in sorted(self._suspects):
            self._reconsider(node, self._members[node], now, effects)
        self._ping_next(now, effects)
        if self._gossip.waiting:
            # News travels by messages: while there is some, there are more of them.
            for node in self._others()[:NEWS]:
                self._ping(node, now, effects)
        if self._suspects:
            # One suspect more: an answer carries its denial.
            self._ping(self._chance.choice(sorted(self._suspects)), now, effects)
        return effects

    def receive(self, message: Ping | Pong | PingRequest, now: float) -> Effects:
        """Take the gossip; answer a ping, take an answer or pass it on, or ping for another."""
        effects = Effects()
        self.heard(message.node if not isinstance(message, Pong) else message.through or message.node, now)
        for update in message.updates:
            self._learn(update, now, effects)
        match message:
            case Ping(node, boot, sent, origin, pause):
                member = self._members.get(node)
                if member is not None and origin == node and boot == member.boot and pause > 0:
                    member.paused_until = now + min(pause, self._settings.longest_pause)
                effects.sends.append((node, Pong(self._node, sent, origin, updates=self._updates_for(node))))
            case Pong(node, sent, origin, through) if origin == self._node:
                probe = self._probes.get(node)
                if probe is not None and sent >= probe.sent:
                    del self._probes[node]
                if not through:
                    self._trips.measured(node, now - sent)
            case Pong(node, sent, origin) if origin in self._members:
                answer = Pong(node, sent, origin, self._node, self._updates_for(origin))
                effects.sends.append((origin, answer))
            case PingRequest(node, sent, target) if target in self._members:
                ping = Ping(self._node, self._boot, sent, node, updates=self._updates_for(target))
                effects.sends.append((target, ping))
            case _:
                pass  # about a node that is no member
        return effects

    def phi(self, node: str, now: float) -> float | None:
        """Gaps between signs of life are as long as chance makes them here: they tell nothing."""
        return None

    def rtt(self, node: str) -> float | None:
        """Return the time from a ping to its answer."""
        return self._trips.of(node)

    # -- what is due ------------------------------------------------------------------------------------------------

    def _ping_next(self, now: float, effects: Effects) -> None:
        for _ in range(len(self._members) + 1):
            if not self._round:
                self._round = list(self._members)
                self._chance.shuffle(self._round)
            if not self._round:
                return
            node = self._round.pop()
            member = self._members.get(node)
            if member is None or member.state is PeerState.DOWN or node in self._probes:
                continue
            if now >= member.paused_until:
                self._probes[node] = _Probe(now, self._listened)
            self._ping(node, now, effects)
            return

    def _ping(self, node: str, now: float, effects: Effects) -> None:
        pause = max(0.0, self._paused_until - now)
        ping = Ping(self._node, self._boot, now, self._node, pause, self._updates_for(node))
        effects.sends.append((node, ping))

    def _follow_up(self, node: str, probe: _Probe, now: float, effects: Effects) -> None:
        waited = self._listened - probe.began
        if self._members[node].paused_until > now:
            del self._probes[node]
        elif waited >= self._settings.acceptable_pause:
            del self._probes[node]
            member = self._members[node]
            asked = f"{', '.join(probe.asked)} could not reach it either" if probe.asked else "nobody else was asked"
            reason = f"no answer to a ping for {waited:.1f} s; {asked}"
            self._believe(Update(node, PeerState.SUSPECT, member.incarnation), reason, now, effects)
        elif waited >= self._settings.heartbeat and not probe.asked:
            probe.asked = self._others(node)
            self._ping(node, now, effects)
            for other in probe.asked:
                request = PingRequest(self._node, probe.sent, node, self._updates_for(other))
                effects.sends.append((other, request))

    def _reconsider(self, node: str, member: _Member, now: float, effects: Effects) -> None:
        if member.paused_until > now or self._is_fresh(member, now):
            return
        lasted = self._listened - member.suspected
        if lasted >= self.suspicion:
            reason = f"{member.reason}; suspect for {lasted:.1f} s, and not denied"
            self._believe(Update(node, PeerState.DOWN, member.incarnation), reason, now, effects)

    @property
    def suspicion(self) -> float:
        """How long a suspicion lasts, in seconds, in a cluster of the present size."""
        beats = max(SHORTEST_SUSPICION, SUSPICION * math.log10(len(self._members) + 1))
        return beats * self._settings.heartbeat

    # -- gossip -----------------------------------------------------------------------------------------------------

    def _learn(self, update: Update, now: float, effects: Effects) -> None:
        if update.node == self._node:
            if update.state is not PeerState.UP:
                # Who has missed an earlier denial is told that one again.
                self._assert_myself(now, above=update.incarnation)
            return
        member = self._members.get(update.node)
        if member is None:
            return
        if member.buried and update.state is PeerState.UP and update.incarnation >= member.incarnation:
            member.buried = False
        if not update.overrides(member.state, member.incarnation):
            return
        if update.state is PeerState.DOWN and self._is_fresh(member, now):
            # Its frames say otherwise. It is asked about the rumour, and has time to deny it.
            if member.state is PeerState.UP or update.incarnation > member.incarnation:
                suspicion = Update(update.node, PeerState.SUSPECT, update.incarnation)
                self._believe(suspicion, "others believe it down", now, effects)
            return
        self._believe(update, f"gossip says that it is {update.state}", now, effects)

    def _believe(self, update: Update, reason: str, now: float, effects: Effects) -> None:
        """Take an update as the truth, and pass it on."""
        node, member = update.node, self._members[update.node]
        was = member.state
        member.state, member.incarnation = update.state, update.incarnation
        self._suspects.discard(node)
        match update.state:
            case PeerState.UP:
                member.paused_until = now + min(update.pause, self._settings.longest_pause)
            case PeerState.SUSPECT:
                self._suspects.add(node)
                member.suspected, member.reason = self._listened, reason
            case PeerState.DOWN:
                self._probes.pop(node, None)
        self._gossip.add(update)
        if update.state is not was:
            effects.changes.append(Change(node, update.state, None if update.state is PeerState.UP else reason))

    def _assert_myself(self, now: float, above: int) -> None:
        """Say that this node is up, with an incarnation above this one."""
        self._incarnation = max(self._incarnation, above + 1)
        pause = max(0.0, self._paused_until - now)
        self._gossip.add(Update(self._node, PeerState.UP, self._incarnation, pause))

    def _updates_for(self, node: str) -> tuple[Update, ...]:
        """What a message to a member carries; what is held against the member itself always."""
        updates = self._gossip.take(len(self._members) + 1)
        member = self._members.get(node)
        if member is None or (member.state is PeerState.UP and not member.buried):
            return updates
        if member.buried:
            return (Update(node, PeerState.DOWN, member.incarnation - 1), *updates)
        return (Update(node, member.state, member.incarnation), *updates)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _is_fresh(self, member: _Member, now: float) -> bool:
        """Whether the member was heard so lately that it cannot be down."""
        return now - member.heard - self._late < self._settings.acceptable_pause

    def _others(self, suspect: str = "") -> tuple[str, ...]:
        up = [node for node, member in self._members.items() if member.state is PeerState.UP and node != suspect]
        return tuple(sorted(self._chance.sample(up, min(self._settings.probes, len(up)))))
