"""How the nodes of a real cluster on loopback judge each other."""

from __future__ import annotations

from functools import partial

import pytest

from runtime.actors import Message
from runtime.cluster import PeerState, membership
from runtime.cluster.liveness import Pong
from runtime.cluster.mesh import Mesh
from runtime.cluster.swim import Swim
from tests.cluster.nodes import BRISK, ClusterNode, cluster
from tests.wire.loopback import eventually

UP, SUSPECT, DOWN = PeerState.UP, PeerState.SUSPECT, PeerState.DOWN


def everyone(nodes: list[ClusterNode]) -> dict[str, PeerState]:
    return {node.name: UP for node in nodes}


async def whole(nodes: list[ClusterNode]) -> None:
    for node in nodes:
        await eventually(partial(_sees, node, everyone(nodes)))


def _sees(node: ClusterNode, expected: dict[str, PeerState]) -> bool:
    return node.sees() == expected


def fall_silent(node: ClusterNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that a node says leave it, though its connections stay open."""
    monkeypatch.setattr(node.network, "send", lambda node, signal, lane: None)


def become_deaf_to(node: ClusterNode, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of another node's signs of life reach this one, though the link is there."""
    real = node.network.last_received
    since = real(other)
    monkeypatch.setattr(node.network, "last_received", lambda name: since if name == other else real(name))


@pytest.mark.parametrize("mode", ["mesh", "swim"])
async def test_a_silent_node_is_down_at_every_other_after_one_suspicion_and_used_again_when_it_speaks(
    mode: membership.Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster("a", "b", "c", "d", mode=mode) as nodes:
        await whole(nodes)
        with monkeypatch.context() as patch:
            fall_silent(nodes[3], patch)
            for node in nodes[:3]:
                await eventually(partial(_is_down, node, "d"))
        for node in nodes[:3]:
            told = [info for info in node.changes if info.name == "d"]
            down = next(i for i, info in enumerate(told) if info.state is DOWN)
            assert [info.state for info in told[: down + 1]] in ([UP, SUSPECT, DOWN], [UP, DOWN])
            assert told[down].reason
            assert {info.state for info in node.changes if info.name in "abc"} <= {UP}
        if mode == "mesh":
            reason = next(info.reason for info in nodes[0].changes if info.state is DOWN) or ""
            assert reason.startswith("no sign of life for ")
            assert reason.endswith("; b, c could not reach it either")
        # It speaks again: it is used again, with a new session.
        await whole(nodes)


def _is_down(node: ClusterNode, other: str) -> bool:
    return any(info.state is DOWN for info in node.changes if info.name == other)


async def test_a_node_that_others_still_reach_stays_suspect_and_is_up_again_when_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster("a", "b", "c", mode="mesh") as nodes:
        await whole(nodes)
        a = nodes[0]
        with monkeypatch.context() as patch:
            become_deaf_to(a, "c", patch)
            await eventually(lambda: a.sees()["c"] is SUSPECT)
            suspect = a.membership.member("c")
            assert suspect is not None
            assert suspect.phi is not None
            assert suspect.phi >= BRISK.phi
            assert (suspect.reason or "").endswith("; asking b")
            assert "c" in [view.name for view in a.membership.views()]
            # Four times the time in which it would be down, were it not for b.
            vouched: list[Message] = []
            take = a.membership.take

            def watched(message: Message) -> None:
                vouched.append(message)
                take(message)

            patch.setattr(a.membership, "take", watched)
            await eventually(lambda: sum(_is_vouching(message) for message in vouched) >= 4)
            assert a.sees()["c"] is SUSPECT
        await eventually(lambda: a.sees()["c"] is UP)
        assert [info.state for info in a.changes if info.name == "c"] == [UP, SUSPECT, UP]
        assert a.changes[-1].reason is None


def _is_vouching(message: Message) -> bool:
    return isinstance(message, Pong) and (message.node, message.through) == ("c", "b")


async def test_swim_measures_round_trips_and_has_no_phi() -> None:
    async with cluster("a", "b", mode="swim") as (a, b):
        await whole([a, b])
        await eventually(lambda: (info := a.membership.member("b")) is not None and info.rtt is not None)
        info = a.membership.member("b")
        assert info is not None
        assert info.phi is None


async def test_the_protocol_follows_the_size_of_the_cluster_and_nobody_is_accused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "MESH_NODES", 3)
    monkeypatch.setattr(membership, "MESH_AGAIN", 2)
    async with cluster("a", "b", "c", "d") as nodes:
        await whole(nodes)
        for node in nodes:
            await eventually(partial(_judges_by, node, Swim))
        await nodes[3].stop()
        await eventually(lambda: nodes[0].sees()["d"] is DOWN)
        # One fewer is not yet a reason to change again; two are.
        assert _judges_by(nodes[0], Swim)
        await nodes[2].stop()
        await eventually(partial(_judges_by, nodes[0], Mesh))
        assert not [info for node in nodes[:2] for info in node.changes if info.state is SUSPECT]


def _judges_by(node: ClusterNode, protocol: type) -> bool:
    return isinstance(node.membership._liveness, protocol)


@pytest.mark.parametrize("modes", [("mesh", "swim"), ("swim", "mesh")])
async def test_nodes_that_judge_in_different_ways_answer_each_other(
    modes: tuple[membership.Mode, membership.Mode],
) -> None:
    async with cluster("a", mode=modes[0]) as (a,), cluster("b", mode=modes[1]) as (b,):
        a.network.dial(frozenset({b.address}))
        await whole([a, b])
        for node, other in ((a, "b"), (b, "a")):
            await eventually(partial(_has_measured, node, other))
        assert {info.state for node in (a, b) for info in node.changes} == {UP}


def _has_measured(node: ClusterNode, other: str) -> bool:
    info = node.membership.member(other)
    return info is not None and info.rtt is not None
