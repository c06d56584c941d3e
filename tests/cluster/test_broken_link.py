"""The link between two nodes is broken, and a third one reaches both, in a simulated network."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cluster import PeerState
from runtime.testing.simulation import SimulatedNode, Simulation, simulation_clock


@pytest.fixture
def anyio_backend() -> Any:
    return simulation_clock()


def usable(node: SimulatedNode) -> list[str]:
    """Name the nodes that could be given layers together."""
    return sorted(view.name for view in node.membership.views())


@pytest.mark.parametrize("ways", [(("b", "c"), ("c", "b")), (("b", "c"),)], ids=["both ways", "one way"])
@pytest.mark.parametrize("seed", range(3))
async def test_two_nodes_that_do_not_reach_each_other_are_given_no_layers_together_until_they_do(
    seed: int, ways: tuple[tuple[str, str], ...]
) -> None:
    async with Simulation(seed) as world:
        a, b, c = await world.start("a", "b", "c")
        await world.until(lambda: usable(a) == ["a", "b", "c"], seconds=10)
        for source, target in ways:
            world.block(source, target)
        # While others vouch for it, and not for long: generations over the link stand still.
        await world.until(lambda: usable(a) in (["a", "b"], ["a", "c"]), seconds=12)
        assert a.sees() == dict.fromkeys("abc", PeerState.UP)
        reasons = {info.reason for info in a.membership.members()}
        assert reasons & {"it does not reach b", "it does not reach c"}
        assert "c" not in usable(b)
        assert "b" not in usable(c)
        world.heal()
        await world.until(lambda: all(usable(node) == ["a", "b", "c"] for node in (a, b, c)), seconds=30)
