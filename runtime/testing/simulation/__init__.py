"""A cluster of real nodes over a simulated network in virtual time, the same each time for the same seed.

@pytest.fixture
def anyio_backend() -> Any:
    return simulation_clock()

async def test_a_node_that_loses_power_is_down_within_8_seconds() -> None:
    async with Simulation(seed=1) as world:
        a, b, c = await world.start("a", "b", "c")
        world.cut_power("c")
        await world.until(lambda: a.sees()["c"] is PeerState.DOWN, seconds=8)
"""

from runtime.testing.simulation.load import Saturation
from runtime.testing.simulation.node import NodeSettings, SimulatedNode
from runtime.testing.simulation.process import Process, SimulationLoop, simulation_clock
from runtime.testing.simulation.trace import Trace, differences
from runtime.testing.simulation.weather import Conditions, SeededWeather
from runtime.testing.simulation.world import Simulation, Transition, simulate

__all__ = [
    "Conditions",
    "NodeSettings",
    "Process",
    "Saturation",
    "SeededWeather",
    "SimulatedNode",
    "Simulation",
    "SimulationLoop",
    "Trace",
    "Transition",
    "differences",
    "simulate",
    "simulation_clock",
]
