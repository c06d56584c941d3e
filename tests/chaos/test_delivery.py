"""Whatever happens to nodes and their network: no message twice, none out of order, none missing within a session, and
one ``Down`` for each monitor."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.actors import Actor, ActorRef, Down, Lane, Message, Restart
from runtime.errors import RuntimeFault
from runtime.testing.simulation import Conditions, SimulatedNode, Simulation, simulate

NAMES = ("a", "b", "c")
SEND_EVERY = 0.1
TARGET = "target"


class Numbered(Message, frozen=True, tag="chaos.numbered"):
    """The ``number``-th message of a session, on one lane."""

    source: str
    boot: int
    """Of the source's life."""
    session: int
    """Counted by the source."""
    number: int


class NumberedBulk(Message, frozen=True, tag="chaos.numbered_bulk"):
    """The same, on the bulk lane."""

    lane: ClassVar[Lane] = Lane.BULK
    source: str
    boot: int
    session: int
    number: int


Heard = dict[tuple[str, str, int, int], list[int]]
"""Numbers by lane, source, the source's boot and session, in the order of arrival, at one life of a node."""


class Target(Actor):
    """Is told numbers, and monitored."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard

    async def receive(self, message: Message) -> None:
        match message:
            case Numbered(source, boot, session, number):
                self._heard["control", source, boot, session].append(number)
            case NumberedBulk(source, boot, session, number):
                self._heard["bulk", source, boot, session].append(number)


class Watcher(Actor):
    """Monitors one actor, once."""

    def __init__(self, target: ActorRef, heard: list[Down]) -> None:
        self._target = target
        self._heard = heard

    async def started(self) -> None:
        self.context.monitor(self._target)

    async def receive(self, message: Message) -> None:
        if isinstance(message, Down):
            self._heard.append(message)


class Sender:
    """Tells everybody numbers from one life of a node, for ever."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._session: defaultdict[str, int] = defaultdict(int)
        self._next: defaultdict[tuple[str, Lane], int] = defaultdict(int)
        node.network.subscribe(lambda peer: self._begun(peer.node), lambda name, reason: None)

    async def run(self) -> None:
        while True:
            for peer in self._node.network.peers():
                for kind in (Numbered, NumberedBulk):
                    self._tell(peer.node, kind)
            await asyncio.sleep(SEND_EVERY)

    def _begun(self, peer: str) -> None:
        self._session[peer] += 1
        for lane in Lane:
            self._next[peer, lane] = 0

    def _tell(self, peer: str, kind: type[Numbered] | type[NumberedBulk]) -> None:
        system, number = self._node.system, self._next[peer, kind.lane]
        message = kind(system.node, system.boot, self._session[peer], number)
        try:
            system.tell(ActorRef(peer, f"/{TARGET}"), message)
        except RuntimeFault:
            return  # refused, so it was not sent
        self._next[peer, kind.lane] += 1


class Chaos:
    """A simulation whose nodes talk and watch each other all the time."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.lives: list[Heard] = []
        self.watches: list[tuple[SimulatedNode, ActorRef, list[Down]]] = []
        self._targets: dict[str, ActorRef] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def populate(self, node: SimulatedNode) -> None:
        """Put the actors on a new life of a node."""
        heard: Heard = defaultdict(list)
        self.lives.append(heard)
        self._targets[node.name] = node.spawn(lambda: Target(heard), TARGET, restart=Restart.TEMPORARY)
        task = asyncio.get_running_loop().create_task(node.run(Sender(node).run()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch_everything(self) -> None:
        """Have each living node monitor each target that there is, whether it can be reached or not."""
        for node in self.world.alive():
            for name, target in self._targets.items():
                if name != node.name:
                    self._watch(node, target)

    def do(self, step: str, one: str, other: str) -> None:
        """Inflict something, where it makes sense."""
        world, alive = self.world, {node.name for node in self.world.alive()}
        match step:
            case "kill" if one in alive:
                world.kill(one)
            case "cut power" if one in alive:
                world.cut_power(one)
            case "partition":
                world.partition({one}, {name for name in NAMES if name != one})
            case "block" if one != other:
                world.block(one, other)
            case "stall" if one in alive:
                world.stall(one, 2.0)
            case "disconnect" if one in alive and one != other:
                world.note(f"{one} disconnects {other}")
                node = world.nodes[one]
                node.process.call(node.network.disconnect, other, "chaos")
            case "heal":
                world.heal()
            case _:
                pass

    async def restart(self, name: str) -> None:
        if not self.world.nodes[name].alive:
            self.populate(await self.world.restart(name))

    async def finish(self) -> None:
        """Make everything well again, let it settle, and stop the targets, which is the end of every watch."""
        self.world.heal()
        for name in NAMES:
            await self.restart(name)
        await self.world.whole(seconds=300)
        self.watch_everything()
        await asyncio.sleep(5)
        for node in self.world.alive():
            node.process.call(node.system.stop, self._targets[node.name])
        await asyncio.sleep(5)
        for task in self._tasks:
            task.cancel()

    def _watch(self, node: SimulatedNode, target: ActorRef) -> None:
        heard: list[Down] = []
        node.spawn(lambda: Watcher(target, heard), f"watcher-{len(self.watches)}")
        self.watches.append((node, target, heard))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["kill", "cut power", "restart", "restart", "partition", "block", "heal", "stall", "disconnect", "watch"]
        ),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.sampled_from([0.0, 0.003, 0.3, 2.0, 9.0]),
    ),
    max_size=12,
)
"""What happens, to whom, and how long later the next thing does: at once, amid a handshake, soon, or after a down."""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, seed=st.integers(0, 1000), lossy=st.booleans())
def test_nothing_is_delivered_twice_or_out_of_order_and_every_monitor_hears_one_down(
    steps: list[tuple[str, str, str, float]], seed: int, lossy: bool
) -> None:
    async def main() -> Chaos:
        conditions = Conditions(jitter=0.1, loss=0.03) if lossy else Conditions()
        async with Simulation(seed, conditions) as world:
            chaos = Chaos(world)
            for node in await world.start(*NAMES):
                chaos.populate(node)
            chaos.watch_everything()
            for step, one, other, pause in steps:
                if step == "restart":
                    await chaos.restart(one)
                elif step == "watch":
                    chaos.watch_everything()
                else:
                    chaos.do(step, one, other)
                await asyncio.sleep(pause)
            await chaos.finish()
            return chaos

    chaos = simulate(main())
    assert any(chaos.lives[-1].values()), "messages arrive at all"
    for life in chaos.lives:
        for (lane, source, _, session), numbers in life.items():
            assert numbers == list(range(len(numbers))), f"{lane} from {source}, session {session}: {numbers}"
    for node, target, heard in chaos.watches:
        if node is chaos.world.nodes[node.name]:
            assert len(heard) == 1, f"{node.name} monitored {target} and heard {heard}"
        else:
            assert len(heard) <= 1
