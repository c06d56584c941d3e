"""Streams over three real nodes, while those that hold layers are killed, frozen and cut off."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from threading import Semaphore

import msgspec

from benchmarks.chaos.leftovers import Leftovers, actors, leaks, leftovers, lives
from benchmarks.chaos.streams import Told, bodies, read_stream
from benchmarks.chaos.wires import Wires
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of

WAIT_SECONDS = 120.0
"""How long may take what is not measured; a loaded machine is slow."""
KEY = "a key for the soak"
NAMES = ("a", "b", "c")
KILL, FREEZE, CUT_OFF, MUTE, CUT_PAIR = DISTURBANCES = ("kill", "freeze", "cut off", "mute", "cut a pair")
"""SIGKILL; SIGSTOP; nothing passes to or from a node; nothing passes from it; nothing passes between two of the three,
which the third still reaches."""


USED = ("up", "self")
"""States of nodes that are given layers."""


class Round(msgspec.Struct, frozen=True):
    """One time that all streams ran."""

    driver: str
    disturbance: str
    """One of :data:`DISTURBANCES`."""
    victim: str
    running: int
    """Streams that were under way when it came."""
    streams: tuple[Told, ...]
    wrong: int
    """Streams whose text is not the undisturbed one."""
    leftovers: tuple[Leftovers, ...]
    """Of each node."""

    @property
    def pause(self) -> float:
        """The longest pause of any stream, in seconds."""
        return max(told.pause for told in self.streams)


class Trio:
    """Three nodes. Clients ask the first, which is never killed; each holds layers, and any may be the driver."""

    def __init__(self, folder: Path, settings: Sequence[str], stack: ExitStack) -> None:
        self._folder = folder
        self._wires = stack.enter_context(Wires())
        self._settings = (f"cluster.key={KEY}", "roles.placement=even", *settings)
        self._addresses = {name: self._wires.settings(name) for name in NAMES}
        self._stack = stack
        self.api = self._start("a")
        self.others = {name: self._start(name) for name in NAMES[1:]}
        self.wait_linked()
        self.idle_actors = {node.name: actors(node) for node in self.nodes()}

    def nodes(self) -> tuple[NodeProcess, ...]:
        """Return all nodes."""
        return self.api, *self.others.values()

    def wait_linked(self) -> None:
        """Wait until every node sees every other one, and knows of nobody who does not."""
        expected = {(name, None) for name in NAMES}
        for node in self.nodes():
            eventually(
                lambda node=node: (  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                    {(each["name"], each["reason"]) for each in node.get("nodes")["nodes"] if each["state"] in USED}
                    >= expected
                ),
                f"node {node.name} sees the others",
                WAIT_SECONDS,
            )

    def node(self, name: str) -> NodeProcess:
        """Return a node by its name."""
        return self.api if name == "a" else self.others[name]

    def wait_idle(self) -> None:
        """Wait until no node has anything left of a model."""
        for node in self.nodes():
            eventually(lambda node=node: not node.get("status")["memory_reserved"], "the memory is free", WAIT_SECONDS)  # type: ignore[misc]  # likewise
            eventually(
                lambda node=node: actors(node) <= self.idle_actors[node.name],  # type: ignore[misc]  # likewise
                f"no actor is left on node {node.name}",
                WAIT_SECONDS,
            )

    @contextmanager
    def disturbed(self, disturbance: str, victim: str) -> Iterator[None]:
        """Disturb a node from the begin of the block to its end, and have it back after that."""
        process = self.others[victim].process
        other = next(name for name in self.others if name != victim)
        match disturbance:
            case "kill":
                process.send_signal(signal.SIGKILL)
            case "freeze":
                process.send_signal(signal.SIGSTOP)
            case "cut off":
                self._wires.cut_off(victim, NAMES)
            case "mute":
                self._wires.cut(*((victim, name) for name in NAMES if name != victim))
            case "cut a pair":
                self._wires.cut_off(victim, (other,))
            case _:
                raise ValueError(f"there is no disturbance {disturbance!r}")
        try:
            yield
        finally:
            self._wires.heal()
            if disturbance == KILL:
                process.wait()
                self.others[victim] = self._start(victim)
            elif disturbance == FREEZE:
                process.send_signal(signal.SIGCONT)
        self.wait_linked()

    def _start(self, name: str) -> NodeProcess:
        peers = (peers_of(self.api),) if name != "a" else ()
        return self._stack.enter_context(
            node_process(
                self._folder,
                name,
                *self._settings,
                *self._addresses[name],
                *peers,
                env={"OPENBLAS_NUM_THREADS": "1"},
            )
        )


def soak(
    folder: Path,
    model: str,
    *,
    seconds: float,
    streams: int,
    tokens: int,
    seed: int,
    settings: Sequence[str] = (),
    disturbances: Sequence[str] = DISTURBANCES,
    report: Callable[[str], None] = lambda line: None,
    after_first_text: bool = False,
) -> list[Round]:
    """Run rounds until the time is over, at least one of each disturbance.

    In each the model is placed anew over all three nodes, through a node drawn by lot, which then drives it; and once
    all streams are under way, a node that is drawn is disturbed until they have ended.

    Args:
        folder: for the nodes' data and logs.
        model: its name.
        seconds: for how long.
        streams: at once.
        tokens: of each stream.
        seed: of what is drawn.
        settings: of each node, beside those of a cluster.
        disturbances: of :data:`DISTURBANCES`, in turn.
        report: is told how each round went.
        after_first_text: whether each stream has told something before it is disturbed, so that every pause is seen.
            Else some may still have their prompt taken in.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing is secret
    rounds: list[Round] = []
    orders = bodies(model, streams, tokens)
    with ExitStack() as stack, ThreadPoolExecutor(streams) as clients:
        trio = Trio(folder, (f"models.sequences={streams}", *settings), stack)
        trio.api.load(model)
        expected = [told.text for told in clients.map(lambda body: read_stream(trio.api.url, body), orders)]
        trio.api.unload(model)
        trio.wait_idle()
        until = time.monotonic() + seconds
        for disturbance in cycle(disturbances):
            if time.monotonic() > until and len(rounds) >= len(disturbances):
                break
            driver, victim = draw.choice("abc"), draw.choice("bc")
            trio.node(driver).load(model)
            placed = set(eventually(lambda: trio.api.layers(model), "node a hears where the model is", WAIT_SECONDS))
            if placed != set(NAMES):
                raise RuntimeError(f"a node that is back is not used: only {sorted(placed)} hold layers")
            begun = Semaphore(0)
            running = [clients.submit(read_stream, trio.api.url, body, begun.release) for body in orders]
            eventually(lambda: trio.api.active() == streams, "all streams are under way", WAIT_SECONDS)
            if after_first_text and not all(begun.acquire(timeout=WAIT_SECONDS) for _ in orders):
                raise TimeoutError(f"not every stream has begun within {WAIT_SECONDS:g} s")
            time.sleep(draw.uniform(0.0, 1.0))  # the loss comes at any moment, not at one of theirs
            under_way = sum(not each.done() for each in running)
            with trio.disturbed(disturbance, victim):
                heard = tuple(each.result() for each in running)
            trio.api.unload(model)
            trio.wait_idle()
            wrong = sum(not told.finished or told.text != text for told, text in zip(heard, expected, strict=True))
            left = tuple(map(leftovers, trio.nodes()))
            rounds.append(Round(driver, disturbance, victim, under_way, heard, wrong, left))
            report(
                f"round {len(rounds)}: {disturbance} {victim}, driven by {driver}: {under_way} under way, "
                f"{wrong} wrong, a pause of {rounds[-1].pause:.2f} s"
            )
    return rounds


def summary(rounds: Sequence[Round]) -> dict[str, object]:
    """Return what came of it."""
    measured = [each for one in rounds for each in one.leftovers]
    return {
        "rounds": len(rounds),
        "streams": sum(len(each.streams) for each in rounds),
        "under way when disturbed": sum(each.running for each in rounds),
        "wrong": sum(each.wrong for each in rounds),
        "errors": [told.error for each in rounds for told in each.streams if told.error is not None],
        "drivers lost": sum(each.driver == each.victim for each in rounds),
        **{
            f"pause, {kind}, median / most, s": [
                round(statistics.median(pauses), 2),
                round(max(pauses), 2),
            ]
            for kind in DISTURBANCES
            if (pauses := [each.pause for each in rounds if each.disturbance == kind and each.running])
        },
        "first / last round of each life": {
            f"node {first.node}, process {first.pid}": {
                "actors": [first.actors, last.actors],
                "reserved bytes": [first.reserved, last.reserved],
                "open descriptors": [first.files, last.files],
                "resident MB": [first.resident // 10**6, last.resident // 10**6],
            }
            for first, last in lives(measured)
        },
        "leaks": leaks(measured),
    }
