"""``runtime bench --load``: many streams at once, on one node, on two, and on mlx-lm's own server.

As in :mod:`runtime.benchmark`, all contenders are loaded before anything is timed, take turns within each round, and
are compared by the ratios of a round. All are asked over HTTP with streaming, with the same prompts.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec

from runtime.benchmark import SERVER_SECONDS, Ratio, RunSettings, Starter, compared
from runtime.config.load import Config
from runtime.inference.options import candidate_options
from runtime.load_client import Target, gaps, together, turns
from runtime.spi import Checkpoint, LoadOptions
from runtime.testing.processes import NodeProcess

WORDS = (
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "music",
    "winter",
    "letter",
    "market",
    "bridge",
    "silver",
    "road",
)
PROMPT = 16
"""Words of a short prompt: about as many tokens."""
CONTEXT = 4608
"""For the long prompt."""
LONG_PROMPT = 4000
"""Words of the prompt that is taken in while others run: about as many tokens."""
CHAT_PROMPT = 2000
"""Words of the first turn of a chat, of which the second has 16 more."""
CALM_SECONDS = 5.0
"""How long streams are watched before that."""


class LoadRow(msgspec.Struct, frozen=True):
    """A contender's median."""

    name: str
    threads: int
    streams: int
    rate: float
    """Tokens a second, of all streams together, from the first request to the last token."""


class LoadReport(msgspec.Struct, frozen=True):
    """Everything that was measured, and on what."""

    machine: str
    model: str
    settings: RunSettings
    rows: tuple[LoadRow, ...]
    ratios: tuple[Ratio, ...]
    outside: float | None
    """CPU seconds a token of the node's event loop, with 8 streams; Linux only."""
    gap: float
    """Median seconds between two tokens of 8 running streams, of texts as long as half way through the long prompt."""
    gap_while_prefilling: float
    """The 99th percentile of that while a long prompt is taken in, in the median round."""
    prefilling: float
    """Seconds that the long prompt took."""
    second_turn: float
    """The time to the first token of a chat's second turn, over that of its first."""


def run_load(
    config: Config, checkpoint: Checkpoint, settings: RunSettings, progress: Callable[[str], None]
) -> LoadReport:
    """Measure; takes some minutes.

    Raises:
        NodeFailed: a node did not start or load the model.
    """
    model = config.models.default
    options = candidate_options(
        checkpoint, backend="cpu", dtype=config.models.dtype, dequantize=str(config.models.dequantize).lower()
    )[0]
    fixed = (f"models.context={CONTEXT}", "models.batch=32")
    with ExitStack() as stack, TemporaryDirectory(prefix="runtime-bench-") as scratch:
        start = Starter(stack, Path(scratch), config, model)
        progress("starting nodes and mlx-lm's server")
        one = start.node("one", settings.threads, *fixed)
        single = start.node("single", settings.stage_threads, *fixed, load=False)
        # Cut so that both stages take about as long; that the last one has the output head counts much here.
        cut = (
            "roles.placement=minmax",
            "plugins.minmax.objective=throughput",
            f"plugins.minmax.prompt_ratio={PROMPT / settings.tokens}",
        )
        pair = start.pair(settings.stage_threads, *fixed, *cut)
        _pin((single, *pair), settings.stage_threads)
        single.load(model)
        pair[0].load(model)
        theirs = _reference_server(stack, checkpoint, options, settings.threads)
        targets = {
            "one stage, 16 streams": Target(single.url, model, settings.stage_threads, 16),
            "one stage, 32 streams": Target(single.url, model, settings.stage_threads, 32),
            "two stages, 32 streams": Target(pair[0].url, model, settings.stage_threads, 32),
            "one node, 8 streams": Target(one.url, model, settings.threads, 8),
            "mlx-lm's server, 8 streams": Target(theirs, "default_model", settings.threads, 8),
        }
        draw = random.Random(0)  # noqa: S311 - prompts, not secrets
        rates: dict[str, list[float]] = {name: [] for name in targets}
        outside: list[float] = []
        for number in range(settings.rounds + 1):
            progress(f"round {number} of {settings.rounds}" if number else "warming up")
            prompts = [_prompt(draw, PROMPT) for _ in range(32)]
            names = list(targets)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                target = targets[name]
                spent = _loop_seconds(one.process.pid) if target.url == one.url else None
                tokens = settings.tokens if number else 4
                rate = asyncio.run(together(target, prompts[: target.streams], tokens))
                if number:
                    rates[name].append(rate)
                if number and spent is not None:
                    outside.append((_loop_seconds(one.process.pid) or 0.0) - spent)
        found = []
        for number in range(settings.rounds):
            progress(f"a long prompt beside 8 streams, round {number + 1} of {settings.rounds}")
            found.append(
                asyncio.run(
                    gaps(
                        targets["one node, 8 streams"],
                        [_prompt(draw, PROMPT) for _ in range(8)],
                        CONTEXT - 100,
                        _prompt(draw, LONG_PROMPT),
                        CALM_SECONDS,
                    )
                )
            )
        again = []
        for number in range(settings.rounds):
            progress(f"the second turn of a chat, round {number + 1} of {settings.rounds}")
            chat = _prompt(draw, CHAT_PROMPT)
            again.append(asyncio.run(turns(targets["one node, 8 streams"], chat, f"{chat} {_prompt(draw, PROMPT)}")))
    return LoadReport(
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        model=model,
        settings=settings,
        rows=tuple(
            LoadRow(name, target.threads, target.streams, median(rates[name])) for name, target in targets.items()
        ),
        ratios=(
            _ratio("two stages with 32 / one with 16", rates, "two stages, 32 streams", "one stage, 16 streams", "1.8"),
            _ratio(
                "two stages with 32 / one with 32", rates, "two stages, 32 streams", "one stage, 32 streams", "1.35"
            ),
            _ratio(
                "one node / mlx-lm's server, 8 streams",
                rates,
                "one node, 8 streams",
                "mlx-lm's server, 8 streams",
                "1.0",
            ),
        ),
        outside=median(outside) / (8 * settings.tokens) if outside else None,
        gap=median(gaps_found.usual for gaps_found in found),
        gap_while_prefilling=median(_percentile(gaps_found.beside, 0.99) for gaps_found in found),
        prefilling=median(gaps_found.seconds for gaps_found in found),
        second_turn=median(again),
    )


def _reference_server(stack: ExitStack, checkpoint: Checkpoint, options: LoadOptions, threads: int) -> str:
    """Start mlx-lm's server; return its URL once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(  # noqa: S603 - our own module, under this interpreter
        [
            sys.executable,
            "-m",
            "runtime.inference.reference_server",
            str(checkpoint.path),
            options.dtype,
            str(options.dequantize).lower(),
            port,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == httpx.codes.OK:
                return url
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("mlx-lm's server did not start")


def _pin(nodes: Sequence[NodeProcess], cores: int) -> None:
    """Give each of the pair cores of its own, and the single node as many; Linux only, elsewhere they share all."""
    if sys.platform != "linux":
        return
    available = sorted(os.sched_getaffinity(0))
    single, first, second = nodes
    for node, start in ((single, 0), (first, 0), (second, cores)):
        own = {available[(start + number) % len(available)] for number in range(cores)}
        for thread in Path(f"/proc/{node.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), own)


def _prompt(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _loop_seconds(pid: int) -> float | None:
    """Return the CPU time of a process's first thread, on which a node's event loop runs; the fields are in proc(5)."""
    if sys.platform != "linux":
        return None
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _ratio(name: str, rates: dict[str, list[float]], ours: str, theirs: str, aim: str) -> Ratio:
    return compared(name, rates[ours], rates[theirs], f">= {aim}")


def describe_load(report: LoadReport) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """Return the report as tables: headings and rows."""
    rest: list[tuple[Any, ...]] = []
    if report.outside is not None:
        rest.append(("event loop, CPU time a token, 8 streams", f"{report.outside * 1000:.2f} ms", "<= 0.5 ms"))
    rest += [
        ("median gap between tokens, 8 streams, half way through a prompt of 4,000", f"{report.gap * 1000:.0f} ms", ""),
        ("99 % of gaps beside that prompt", f"{report.gap_while_prefilling * 1000:.0f} ms", ""),
        ("the latter / the former", f"{report.gap_while_prefilling / report.gap:.2f}", "<= 3"),
        ("time to the first token of that prompt", f"{report.prefilling:.1f} s", ""),
        ("second turn / first turn of a chat of 2,000 tokens, first token", f"{report.second_turn:.3f}", "<= 0.15"),
    ]
    return [
        (
            ("CONTENDER", "THREADS", "TOKENS/S"),
            [(row.name, row.threads, f"{row.rate:.1f}") for row in report.rows],
        ),
        (
            ("RATIO", "MEDIAN", "RANGE", "AIM"),
            [
                (each.name, f"{each.median:.3f}", f"{each.low:.3f} to {each.high:.3f}", each.aim)
                for each in report.ratios
            ],
        ),
        (("MEASURE", "FOUND", "AIM"), rest),
    ]
