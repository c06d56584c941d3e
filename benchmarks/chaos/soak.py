"""Streams over three real nodes, while those that hold layers are killed and frozen."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import msgspec

from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of

WAIT_SECONDS = 120.0
"""How long may take what is not measured; a loaded machine is slow."""
SILENCE_SECONDS = 60.0
"""How long a stream may say nothing at all before it counts as hanging."""
KEY = "a key for the soak"


class Told(msgspec.Struct, frozen=True):
    """What a client read of one stream."""

    text: str
    finished: bool
    error: str | None
    pause: float
    """The longest time between two pieces of text, in seconds."""


class Leftovers(msgspec.Struct, frozen=True):
    """What the node that is never disturbed holds when nothing runs and no model is loaded."""

    actors: int
    reserved: int
    """Bytes."""
    files: int
    """Open descriptors."""
    resident: int
    """Bytes."""


class Round(msgspec.Struct, frozen=True):
    """One time that all streams ran."""

    driver: str
    disturbance: str
    """``kill`` or ``freeze``."""
    victim: str
    streams: tuple[Told, ...]
    wrong: int
    """Streams whose text is not the undisturbed one."""
    leftovers: Leftovers

    @property
    def pause(self) -> float:
        """The longest pause of any stream, in seconds."""
        return max(told.pause for told in self.streams)


class Trio:
    """Three nodes. Clients ask the first, which is never disturbed; each holds layers, and any may be the driver."""

    def __init__(self, folder: Path, settings: Sequence[str], stack: ExitStack) -> None:
        self._folder = folder
        self._settings = ("cluster.listen=127.0.0.1:0", f"cluster.key={KEY}", "roles.placement=even", *settings)
        self._stack = stack
        self.api = self._start("a")
        self.others = {name: self._start(name) for name in ("b", "c")}
        self.wait_linked()

    def wait_linked(self) -> None:
        """Wait until every node sees every other one."""
        names = {"a", *self.others}
        for node in (self.api, *self.others.values()):
            eventually(
                lambda node=node: all(node.sees().get(name) in ("up", "self") for name in names),  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                f"node {node.name} sees the others",
                WAIT_SECONDS,
            )

    def node(self, name: str) -> NodeProcess:
        """Return a node by its name."""
        return self.api if name == "a" else self.others[name]

    @contextmanager
    def disturbed(self, disturbance: str, victim: str) -> Iterator[None]:
        """Kill or freeze a node at the begin of the block, and have it back after its end."""
        process = self.others[victim].process
        process.send_signal(signal.SIGKILL if disturbance == "kill" else signal.SIGSTOP)
        try:
            yield
        finally:
            if disturbance == "kill":
                process.wait()
                self.others[victim] = self._start(victim)
            else:
                process.send_signal(signal.SIGCONT)
        self.wait_linked()

    def _start(self, name: str) -> NodeProcess:
        peers = (peers_of(self.api),) if name != "a" else ()
        return self._stack.enter_context(
            node_process(self._folder, name, *self._settings, *peers, env={"OPENBLAS_NUM_THREADS": "1"})
        )


def bodies(model: str, count: int, tokens: int) -> list[dict[str, object]]:
    """Return requests for ``count`` streams: greedy ones, and sampled ones with a seed and penalties."""
    made: list[dict[str, object]] = []
    for number in range(count):
        body: dict[str, object] = {
            "model": model,
            "prompt": f"Once upon a time there were {number} foxes",
            "max_tokens": tokens,
            "logit_bias": {"0": -100, "2": -100},  # what would end the text
            "stream": True,
        }
        sampled = {"temperature": 0.8, "seed": number, "frequency_penalty": 0.2}
        made.append(body | (sampled if number % 2 else {"temperature": 0}))
    return made


def read_stream(url: str, body: dict[str, object]) -> Told:
    """Read one stream to its end."""
    pieces: list[str] = []
    pause, error, finished = 0.0, None, False
    last = None
    with (
        httpx.Client(trust_env=False, timeout=SILENCE_SECONDS) as client,
        client.stream("POST", f"{url}/v1/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    error = str(event["error"]["message"])
                    continue
                now = time.monotonic()
                pause, last = max(pause, 0.0 if last is None else now - last), now
                pieces.append(event["choices"][0]["text"])
            elif line and not line.startswith(":"):
                error = line  # an error response
    return Told("".join(pieces), finished, error, pause)


def leftovers(node: NodeProcess) -> Leftovers:
    """Measure what a node holds."""
    status = node.get("status")
    pid = node.process.pid
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Leftovers(
        actors=len(node.get("actors")["actors"]),
        reserved=int(status["memory_reserved"]),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        resident=resident,
    )


def soak(
    folder: Path, model: str, *, seconds: float, streams: int, tokens: int, seed: int, settings: Sequence[str] = ()
) -> list[Round]:
    """Run rounds until the time is over, at least one of each disturbance.

    In each the model is placed anew over all three nodes, through a node drawn by lot, which then drives it; and once
    all streams are under way, a node that is drawn is killed or frozen until they have ended.

    Args:
        folder: for the nodes' data and logs.
        model: its name.
        seconds: for how long.
        streams: at once.
        tokens: of each stream.
        seed: of what is drawn.
        settings: of each node, beside those of a cluster.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing is secret
    rounds: list[Round] = []
    orders = bodies(model, streams, tokens)
    with ExitStack() as stack, ThreadPoolExecutor(streams) as clients:
        trio = Trio(folder, (f"models.sequences={streams}", *settings), stack)
        trio.api.load(model)
        expected = [told.text for told in clients.map(lambda body: read_stream(trio.api.url, body), orders)]
        trio.api.unload(model)
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(rounds) < 2:
            driver, victim = draw.choice("abc"), draw.choice("bc")
            disturbance = ("kill", "freeze")[len(rounds) % 2]
            trio.node(driver).load(model)
            placed = set(trio.api.layers(model))
            if placed != {"a", "b", "c"}:
                raise RuntimeError(f"a node that is back is not used: only {sorted(placed)} hold layers")
            running = [clients.submit(read_stream, trio.api.url, body) for body in orders]
            eventually(lambda: trio.api.active() == streams, "all streams are under way", WAIT_SECONDS)
            time.sleep(draw.uniform(0.0, 1.0))  # the loss comes at any moment, not at one of theirs
            with trio.disturbed(disturbance, victim):
                heard = tuple(each.result() for each in running)
            trio.api.unload(model)
            eventually(lambda: not trio.api.get("status")["memory_reserved"], "the memory is free", WAIT_SECONDS)
            wrong = sum(not told.finished or told.text != text for told, text in zip(heard, expected, strict=True))
            rounds.append(Round(driver, disturbance, victim, heard, wrong, leftovers(trio.api)))
    return rounds


def summary(rounds: Sequence[Round]) -> dict[str, object]:
    """Return what came of it."""
    first, last = rounds[0].leftovers, rounds[-1].leftovers
    return {
        "rounds": len(rounds),
        "streams": sum(len(each.streams) for each in rounds),
        "wrong": sum(each.wrong for each in rounds),
        "errors": [told.error for each in rounds for told in each.streams if told.error is not None],
        "drivers lost": sum(each.driver == each.victim for each in rounds),
        **{
            f"pause after {kind}, median / most, s": [
                round(statistics.median(pauses), 2),
                round(max(pauses), 2),
            ]
            for kind in ("kill", "freeze")
            if (pauses := [each.pause for each in rounds if each.disturbance == kind])
        },
        "actors, first / last": [first.actors, last.actors],
        "open files, first / last": [first.files, last.files],
        "resident MB, first / last": [first.resident // 10**6, last.resident // 10**6],
        "reserved bytes at the end": last.reserved,
    }
