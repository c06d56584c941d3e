from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from runtime.cluster import PeerState, membership
from runtime.spi import Discovery, NodeMemory
from runtime.wire import DialState
from tests.cluster.nodes import BRISK, ClusterNode, Seeds, cluster
from tests.wire.loopback import eventually, log_lines

UP, DOWN = PeerState.UP, PeerState.DOWN


async def test_nodes_that_know_one_seed_each_become_a_full_mesh() -> None:
    async with cluster("a", "b", "c", "d") as nodes:
        everyone = dict.fromkeys("abcd", UP)
        for node in nodes:
            await eventually(partial(_sees, node, everyone))
            assert len(node.linked()) == 3


def _sees(node: ClusterNode, expected: dict[str, PeerState]) -> bool:
    return node.sees() == expected


async def test_each_node_tells_what_it_is_and_how_far_away_it_is_gets_measured() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b") and _rtt(a, "b") is not None)
        info = a.membership.member("b")
        assert info is not None
        assert info.profile == b.profile()
        assert (info.address, info.boot, info.local) == (b.address, b.system.boot, False)
        assert info.last_seen < 1
        assert 0 <= (_rtt(a, "b") or 0) < 5
        assert [view.name for view in a.membership.views()] == ["a", "b"]
        assert a.membership.views()[1].families == ("dense",)
        assert a.membership.members()[0].local


def _rtt(node: ClusterNode, peer: str) -> float | None:
    info = node.membership.member(peer)
    return info.rtt if info else None


async def test_listeners_hear_once_that_a_node_became_unhealthy_and_once_that_it_is_not_any_more() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.told("b"))
        a.changes.clear()

        def heard() -> list[tuple[str, PeerState, str | None]]:
            return [(info.name, info.state, info.profile.unhealthy if info.profile else None) for info in a.changes]

        for count, reason in enumerate(("a step is stuck", None), 1):
            b.unhealthy = reason
            for _ in range(3):
                b.membership.report()
            await eventually(lambda count=count: len(a.changes) == count)  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
        b.memory = NodeMemory(total=1000, available=700)
        b.membership.report()
        await eventually(lambda: (told := a.told("b")) is not None and told.available == 700)
        assert heard() == [("b", UP, "a step is stuck"), ("b", UP, None)]


async def test_a_node_that_leaves_is_down_once_with_the_reason_and_one_that_returns_is_used_again() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.sees() == {"a": UP, "b": UP})
        await b.stop()
        await eventually(lambda: a.sees() == {"a": UP, "b": DOWN})
        gone = a.membership.member("b")
        assert gone is not None
        assert gone.reason == "the node shut down"
        assert [view.name for view in a.membership.views()] == ["a"]
        again = ClusterNode("b", Seeds(frozenset({a.address})))
        try:
            await again.network.listen("127.0.0.1", 0)
            await eventually(lambda: a.told("b") and a.sees() == {"a": UP, "b": UP})
            assert [(info.name, info.state) for info in a.changes] == [("b", UP), ("b", DOWN), ("b", UP)]
        finally:
            await again.stop()


async def test_a_link_without_a_sign_of_life_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.sees() == {"a": UP, "b": UP})
        # The process b stands for has stopped: its connections are open, and nothing comes.
        monkeypatch.setattr(b.membership, "tick", lambda now: None)
        monkeypatch.setattr(b.membership, "take", lambda message: None)
        monkeypatch.setattr(b.registry, "_tell", lambda nodes: None)
        await eventually(lambda: DOWN in [info.state for info in a.changes])
        states = [info.state for info in a.changes if info.name == "b"]
        assert states[:3] == [UP, PeerState.SUSPECT, DOWN]
        reasons = [info.reason for info in a.changes if info.state is DOWN]
        assert reasons[0] is not None
        assert reasons[0].startswith("no sign of life for")


async def test_a_peer_that_announced_a_pause_is_not_suspected_until_it_takes_it_back() -> None:
    async with cluster("a", "b") as (a, b):
        await eventually(lambda: a.sees() == {"a": UP, "b": UP})

        def phi_soon() -> float:
            return a.membership._liveness.phi("b", a.system.now() + membership.PAUSE / 2) or 0.0

        assert phi_soon() > BRISK.phi
        with b.membership.pausing():
            with b.membership.pausing():
                await eventually(lambda: phi_soon() < 1)
            await eventually(lambda: phi_soon() < 1)
        await eventually(lambda: phi_soon() > BRISK.phi)


async def test_an_address_where_nobody_answers_is_listed_with_the_reason() -> None:
    lonely = ClusterNode("a", Seeds(frozenset({"127.0.0.1:1", "nonsense"})))
    try:
        await eventually(lambda: len(lonely.membership.unreached()) == 2)
        reasons = {status.address: status for status in lonely.membership.unreached()}
        assert reasons["nonsense"].lasting
        assert "host:port" in str(reasons["nonsense"].reason)
        assert reasons["127.0.0.1:1"].state is DialState.FAILED
        assert reasons["127.0.0.1:1"].reason
    finally:
        await lonely.stop()


class Flaky(Discovery):
    """Fails the first time it is asked."""

    def __init__(self, address: str) -> None:
        self.asked = 0
        self._address = address

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("the discovery has a bug")
        yield frozenset({self._address})


async def test_a_discovery_that_fails_is_reported_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "DISCOVERY_RETRY", 0.05)
    async with log_lines("ERROR") as lines, cluster("a") as (a,):
        b = ClusterNode("b", Flaky(a.address))
        try:
            await eventually(lambda: a.linked() == ["b"])
            assert any("discovery failed" in line and "the discovery has a bug" in line for line in lines)
        finally:
            await b.stop()
