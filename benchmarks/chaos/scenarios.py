"""What simulated clusters are put through, one function a scenario, and what counts as a mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from runtime.cluster import PeerState
from runtime.testing.simulation import Conditions, NodeSettings, Saturation, Simulation, Transition

NAMES = ("a", "b", "c")
LOSSY = Conditions(latency=0.001, jitter=0.3, loss=0.05)
"""5 % of packets lost, and up to 300 ms of jitter."""
LOSS, RETURN = "the loss", "the return"
"""What a scenario notes when a node is lost, and when it comes back."""
LONGEST_DETECTION = 30.0
"""Seconds after which a loss counts as not detected at all."""


class Outcome(msgspec.Struct, frozen=True):
    """What one seed of one scenario came to."""

    scenario: str
    seed: int
    digest: str
    """Of the trace."""
    seconds: float
    """Virtual time, in seconds."""
    events: int
    """Real events: nodes that were lost, or came back."""
    false_downs: int
    """Nodes that were alive and reachable, and declared down; once for each observer."""
    suspicions: int
    """Nodes that were suspect, and alive; once for each observer and time."""
    detections: tuple[float, ...] = ()
    """Seconds from the loss of a node to its being down, of each survivor."""
    most_transitions: int = 0
    """Changes between used and down that one observer told of one event, at most."""
    complaint: str = ""
    """What went wrong, if anything did."""


async def stalls(world: Simulation) -> None:
    """Each node's process is stopped for 2 s every 10 s, each in a phase of its own, for 120 s."""
    for name in NAMES:
        phase = world.random.uniform(0, 10)
        begin = partial(world.repeat, 10.0, partial(world.stall, name, 2.0), world.now + 120)
        asyncio.get_running_loop().call_later(phase, begin)
    await asyncio.sleep(130)


async def saturated(world: Simulation) -> None:
    """Bulk in both directions between two of three nodes, as fast as the network takes it, for 60 s."""
    a, b = world.nodes["a"], world.nodes["b"]
    loads = [Saturation(a, b), Saturation(b, a)]
    await asyncio.sleep(60)
    least = 0.5 * 60 * world.weather.conditions.bandwidth
    for load in loads:
        if load.received < least:
            raise AssertionError(f"the lane was not saturated: {load.received} bytes in 60 s, {load.fault}")


async def lossy(world: Simulation) -> None:
    """5 % of packets are lost, and the rest delayed by up to 300 ms, for 120 s."""
    await asyncio.sleep(120)


async def busy(world: Simulation) -> None:
    """Each node's event loop is held up for 50 to 500 ms about twice a second, for 120 s."""
    end = world.now + 120

    def hold_up(name: str) -> None:
        if world.now < end:
            held = world.random.uniform(0.05, 0.5)
            world.stall(name, held)
            asyncio.get_running_loop().call_later(held + world.random.uniform(0, 0.5), hold_up, name)

    for name in NAMES:
        hold_up(name)
    await asyncio.sleep(125)


async def lose(world: Simulation, how: Callable[[Simulation, str], None]) -> None:
    """A node is lost, and 40 s later comes back."""
    await asyncio.sleep(world.random.uniform(5, 20))
    how(world, "c")
    world.note(LOSS)
    await asyncio.sleep(LONGEST_DETECTION + 10)
    world.note(RETURN)
    await world.restart("c")
    await world.whole()
    await asyncio.sleep(10)


Scenario = tuple[Callable[[Simulation], Awaitable[None]], Callable[[Simulation], Conditions]]

WITHOUT_EVENTS: dict[str, Scenario] = {
    "a 2 s stall of each node every 10 s": (stalls, lambda world: Conditions()),
    "bulk saturated for 60 s": (
        saturated,
        # Slow ones are the hard ones: what a window of bulk takes is what control waits.
        lambda world: Conditions(bandwidth=world.random.choice((0.3e6, 0.6e6, 1.25e6, 2.5e6))),
    ),
    "5 % loss with 300 ms jitter": (lossy, lambda world: LOSSY),
    "event loops held up 50 to 500 ms, twice a second": (busy, lambda world: Conditions()),
}
"""In these nobody is lost, and nobody may be called down."""

LOSSES: dict[str, Scenario] = {
    "kill -9 (the connections close)": (partial(lose, how=Simulation.kill), lambda world: Conditions()),
    "power cut (silence)": (partial(lose, how=Simulation.cut_power), lambda world: Conditions()),
    "power cut, with 5 % loss and 300 ms jitter": (
        partial(lose, how=Simulation.cut_power),
        lambda world: LOSSY,
    ),
}
"""In these one node is lost, and comes back after a time."""

SCENARIOS = WITHOUT_EVENTS | LOSSES


async def play(
    scenario: str, seed: int, *, settings: NodeSettings | None = None, keep_frames: bool = False
) -> tuple[Outcome, Simulation]:
    """Run one seed of a scenario, on a simulation's event loop; return its outcome, and the simulation, ended."""
    act, conditions = SCENARIOS[scenario]
    complaint = ""
    async with Simulation(seed, settings=settings, keep_frames=keep_frames) as world:
        world.weather.conditions = conditions(world)
        try:
            await world.start(*NAMES)
            await act(world)
        except (TimeoutError, AssertionError) as error:
            complaint = str(error)
        now = world.now
    return _judge(world, scenario, seed, now, complaint), world


def _judge(world: Simulation, scenario: str, seed: int, now: float, complaint: str) -> Outcome:
    loss, back = world.noted.get(LOSS, now), world.noted.get(RETURN, now)
    lost = [seen for seen in world.transitions if seen.subject == "c" and loss <= seen.at < back]
    returned = [seen for seen in world.transitions if "c" in (seen.subject, seen.observer) and seen.at >= back]
    other = [seen for seen in world.transitions if seen not in lost and seen not in returned]
    detections = tuple(seen.at - loss for seen in lost if seen.state is PeerState.DOWN)
    if scenario in LOSSES and not complaint and len(detections) != len(NAMES) - 1:
        complaint = f"{len(detections)} of {len(NAMES) - 1} survivors told that the node is down"
    false = [seen for seen in (*other, *returned) if seen.state is PeerState.DOWN]
    suspicions = [seen for seen in (*other, *returned) if seen.state is PeerState.SUSPECT]
    most = max(_most_changes(lost), _most_changes(returned))
    if false and not complaint:
        complaint = f"{false[0].observer} called {false[0].subject} down at {false[0].at:.2f} s: {false[0].reason}"
    if most > 1 and not complaint:
        complaint = f"one observer told {most} transitions of one event"
    events = (loss < now) + (back < now)
    return Outcome(
        scenario, seed, world.trace.digest(), now, events, len(false), len(suspicions), detections, most, complaint
    )


def _most_changes(seen: list[Transition]) -> int:
    """Return how often one observer changed its mind about one node, at most.

    A suspect node is used as one that is up is, so only what leads to down or away from it counts.
    """
    most = 0
    for pair in {(one.observer, one.subject) for one in seen}:
        states = [one.state for one in seen if (one.observer, one.subject) == pair]
        used = [state is not PeerState.DOWN for state in states]
        # A lost node was used before; a returned one was not.
        before = not used[-1]
        changes = sum(one != other for one, other in zip([before, *used], used, strict=False))
        most = max(most, changes)
    return most
