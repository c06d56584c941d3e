"""A cluster in one event loop and in virtual time, on which anything can be inflicted, repeatably."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Iterable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from runtime.cluster import NodeInfo, PeerState
from runtime.testing.clock import DEFAULT_LIMIT, run
from runtime.testing.simulation.node import NodeSettings, SimulatedNode, address_of
from runtime.testing.simulation.process import SimulationLoop
from runtime.testing.simulation.replay import Recorder, replay
from runtime.testing.simulation.trace import Trace
from runtime.testing.simulation.weather import Conditions, SeededWeather
from runtime.wire.memory import Wires

FIRST_BOOT = 1_700_000_000_000
"""Milliseconds since the epoch at which every simulation begins."""
POLL = 0.01
"""Seconds between two looks of :meth:`Simulation.until`."""

T = TypeVar("T")


class Transition(NamedTuple):
    """A change of one node's state in the view of another."""

    at: float
    observer: str
    subject: str
    state: PeerState
    reason: str | None


class Simulation:
    """Simulated machines and the network between them; an asynchronous context manager.

    It needs a :class:`~runtime.testing.simulation.process.SimulationLoop`. Everything random is drawn from the seed,
    also what is drawn from Python's global generator, which is given back as it was. So the same seed and the same
    scenario give the same :attr:`trace`.
    """

    def __init__(
        self,
        seed: int,
        conditions: Conditions | None = None,
        settings: NodeSettings | None = None,
        *,
        keep_frames: bool = False,
    ) -> None:
        """``keep_frames`` has the trace keep a line for each frame, which is for debugging."""
        self.random = random.Random(f"scenario {seed}")  # noqa: S311 - to be repeated, not secret
        """For the scenario's own choices."""
        self.trace = Trace(keep_frames)
        self.transitions: list[Transition] = []
        """Every change that any node's membership has told, in order."""
        self.noted: dict[str, float] = {}
        """When the scenario noted each of its own lines, for the last time."""
        self.nodes: dict[str, SimulatedNode] = {}
        """The present life of each node, or its last."""
        self._loop = asyncio.get_running_loop()
        if not isinstance(self._loop, SimulationLoop):
            raise TypeError(f"a Simulation needs a SimulationLoop, and {type(self._loop).__name__} runs")
        self._settings = settings or NodeSettings()
        chance = random.Random(f"weather {seed}")  # noqa: S311 - likewise
        self.weather = SeededWeather(chance, self.trace, conditions or Conditions())
        """The network; change its :attr:`~SeededWeather.conditions` at any time."""
        self.weather.wires = self._wires = Wires(self.weather)
        self._recorder = Recorder()
        self._lives: list[SimulatedNode] = []
        self._seed = seed
        self._global_state = random.getstate()

    async def __aenter__(self) -> Simulation:
        self._global_state = random.getstate()
        random.seed(f"global {self._seed}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.trace.close()
        try:
            for node in self._lives:
                if node.alive:
                    node.alive = False
                    self._wires.crash(node.name, silently=True)
            for node in self._lives:
                await node.take_apart()
        finally:
            random.setstate(self._global_state)

    @property
    def now(self) -> float:
        """Seconds of virtual time."""
        return self._loop.time()

    # -- nodes ------------------------------------------------------------------------------------------------------

    async def start(self, *names: str) -> list[SimulatedNode]:
        """Start nodes, each of which is told the addresses of all so far, and wait until they see each other."""
        known = {*self.nodes, *names}
        for name in names:
            await self._boot(name, known)
        await self.whole()
        return [self.nodes[name] for name in names]

    async def restart(self, name: str) -> SimulatedNode:
        """Start a crashed node again, without waiting for anything; return its new life."""
        if self.nodes[name].alive:
            raise ValueError(f"node {name} is alive; crash it first")
        self.weather.power_on(name)
        self.trace.note(self.now, f"restart {name}")
        return await self._boot(name, self.nodes)

    def kill(self, name: str) -> None:
        """End a node's process without a word; its kernel closes its connections."""
        self._end_life(name, "kill", silently=False)

    def cut_power(self, name: str) -> None:
        """End a node's machine; nobody is told, and nothing answers until it is restarted."""
        self._end_life(name, "cut power of", silently=True)

    def stall(self, name: str, seconds: float) -> None:
        """Stop a node's process for a while; its machine goes on."""
        self.trace.note(self.now, f"stall {name} for {seconds:g} s")
        self.nodes[name].stall(seconds)

    def alive(self) -> list[SimulatedNode]:
        """The nodes that have not crashed."""
        return [node for node in self.nodes.values() if node.alive]

    # -- network ----------------------------------------------------------------------------------------------------

    def partition(self, *groups: Collection[str]) -> None:
        """Let nothing through between nodes of different groups."""
        pairs = [(a, b) for one in groups for other in groups if other is not one for a in one for b in other]
        self.trace.note(self.now, f"partition {' | '.join(' '.join(group) for group in groups)}")
        self.weather.block(pairs)

    def block(self, source: str, target: str) -> None:
        """Let nothing through from one node to another; the other way stays open."""
        self.trace.note(self.now, f"block {source} -> {target}")
        self.weather.block([(source, target)])

    def heal(self) -> None:
        """Take back all partitions and blocks."""
        self.trace.note(self.now, "heal")
        self.weather.unblock()

    def slow_reader(self, name: str, bytes_a_second: float | None) -> None:
        """Let a node read slowly from now on; None takes it back."""
        self.trace.note(self.now, f"{name} reads {bytes_a_second} bytes a second")
        if bytes_a_second is None:
            self.weather.reading.pop(name, None)
        else:
            self.weather.reading[name] = bytes_a_second

    async def duplicate(self, target: str, seconds: float = 10.0) -> int:
        """Try to have a node take again what others sent it: repeat, from a host of its own, every connection to it.

        Return how many connections were repeated. Those that are still open after ``seconds`` are closed.
        """
        repeated = 0
        for recording in [one for one in self._recorder.recordings if one.host == target]:
            frames = len(recording.frames)
            self.trace.note(self.now, f"repeat {frames} frames to {target}")
            try:
                async with asyncio.timeout(seconds):
                    taken = await replay(recording, self._wires.medium("repeater"))
            except TimeoutError:
                taken = frames
            except OSError as error:
                self.trace.note(self.now, f"nobody takes them: {error}")
                continue
            self.trace.note(self.now, f"{taken} of {frames} were taken")
            repeated += 1
        return repeated

    # -- time -------------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Let time pass until something is so.

        Raises:
            TimeoutError: it is not within ``seconds``; the text has the end of the trace.
        """
        end = self.now + seconds
        while not condition():
            if self.now >= end:
                last = "\n".join(self.trace.lines[-40:])
                raise TimeoutError(f"not so within {seconds:g} s; the trace ends with:\n{last}")
            await asyncio.sleep(POLL)

    async def whole(self, seconds: float = 60.0) -> None:
        """Let time pass until all nodes that are alive see each other up and are linked."""
        await self.until(self._is_whole, seconds)

    def repeat(self, every: float, act: Callable[[], None], until: float) -> None:
        """Call ``act`` every so many seconds, the first time after as many, while it is before ``until``."""

        def again() -> None:
            if self.now < until:
                act()
                self._loop.call_later(every, again)

        self._loop.call_later(every, again)

    # -- what was seen ----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Put a line of the scenario's own into the trace."""
        self.noted[text] = self.now
        self.trace.note(self.now, text)

    def downs(self, *, of: Iterable[str] | None = None, since: float = 0.0) -> list[Transition]:
        """The transitions to down, of these nodes or of all."""
        subjects = set(self.nodes if of is None else of)
        return [
            seen
            for seen in self.transitions
            if seen.state is PeerState.DOWN and seen.subject in subjects and seen.at >= since
        ]

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _boot(self, name: str, known: Collection[str]) -> SimulatedNode:
        seeds = frozenset(address_of(other) for other in known if other != name)
        boot = FIRST_BOOT + round(self.now * 1000) + len(self._lives)
        medium = self._recorder.tap(self._wires.medium(name))
        node = SimulatedNode(name, medium, seeds, boot, self._settings, self._changed)
        self.nodes[name] = node
        self._lives.append(node)
        await node.listen()
        return node

    def _end_life(self, name: str, what: str, *, silently: bool) -> None:
        node = self.nodes[name]
        if not node.alive:
            raise ValueError(f"node {name} has crashed already")
        self.trace.note(self.now, f"{what} {name}")
        node.alive = False
        node.process.freeze()
        self._wires.crash(name, silently=silently)
        self.weather.forget_life(name)
        if silently:
            self.weather.power_off(name)

    def _changed(self, node: SimulatedNode, info: NodeInfo) -> None:
        if not node.alive:
            return
        seen = Transition(self.now, node.name, info.name, info.state, info.reason)
        self.transitions.append(seen)
        self.trace.note(self.now, f"{seen.observer} sees {seen.subject} {seen.state}: {seen.reason or '-'}")

    def _is_whole(self) -> bool:
        alive = self.alive()
        return all(
            node.sees().get(other.name) is PeerState.UP and node.network.peer(other.name) is not None
            for node in alive
            for other in alive
            if other is not node
        )


def simulate(scenario: Coroutine[Any, Any, T], limit: float = DEFAULT_LIMIT) -> T:
    """Run a scenario outside of pytest: ``simulate(main())``. It makes its :class:`Simulation` itself.

    Raises:
        VirtualTimeError: it waits for what cannot come.
    """
    return run(scenario, lambda: SimulationLoop(limit))
