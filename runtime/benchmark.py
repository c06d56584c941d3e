"""``runtime bench``: a node, mlx-lm alone, and a pipeline of two nodes, on the same weights and threads.

Every contender is a process of its own, all are loaded before anything is timed, and each round runs all of them one
after the other on the same prompt. So noise of the machine falls on all alike, and ratios of one round hold where
absolute figures do not. Nodes are asked over HTTP with streaming, as clients ask them; mlx-lm's ``stream_generate``
is called directly.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import psutil

from runtime.config.load import Config
from runtime.inference.options import candidate_options
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, MemoryEstimator, Workload
from runtime.testing.processes import NodeProcess, node_process, peers_of

SERVER_SECONDS = 600.0


class RunSettings(msgspec.Struct, frozen=True):
    """What is run, by whatever benchmark."""

    tokens: int
    """Tokens of each generation."""
    rounds: int
    threads: int
    """BLAS threads of the one node, and of mlx-lm or its server."""
    stage_threads: int
    """BLAS threads of each of the two nodes, and of the one that they are compared with; under load also their cores,
    on Linux."""


class BenchSettings(RunSettings, frozen=True):
    """What is run one after the other."""

    prompt_tokens: int


class Sample(msgspec.Struct, frozen=True):
    """One generation, timed where its tokens arrive."""

    prompt_tokens: int
    tokens: int
    first: float
    """Seconds to the first token."""
    last: float
    """Seconds to the last token."""

    @property
    def prefill(self) -> float:
        """Prompt tokens a second, the first token's sampling included."""
        return self.prompt_tokens / self.first

    @property
    def decode(self) -> float:
        """Tokens a second after the first."""
        return (self.tokens - 1) / (self.last - self.first)


class Row(msgspec.Struct, frozen=True):
    """A contender's medians."""

    name: str
    threads: int
    time_to_first_token: float
    """Seconds."""
    prefill: float
    """Tokens a second."""
    decode: float
    """Tokens a second."""


class Ratio(msgspec.Struct, frozen=True):
    """A comparison: the median of the rounds' ratios, and their range."""

    name: str
    median: float
    low: float
    high: float
    aim: str


def compared(name: str, ours: Sequence[float], theirs: Sequence[float], aim: str) -> Ratio:
    """Compare two contenders, of which there is a figure for each round."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Ratio(name, median(ratios), min(ratios), max(ratios), aim)


class StageMemory(msgspec.Struct, frozen=True):
    """What a stage took over an idle node, in bytes; Linux only."""

    node: str
    layers: str
    idle: int
    """Resident before the model was loaded, MLX imported."""
    peak: int
    """Highest resident size from then on."""
    weights_and_cache: int
    ratio: float
    """(peak - idle) / weights_and_cache."""


class BenchReport(msgspec.Struct, frozen=True):
    """Everything that was measured, and on what."""

    machine: str
    blas: str
    model: str
    settings: BenchSettings
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    memory: tuple[StageMemory, ...]


Contender = Callable[[list[int], int], Sample]


def run_bench(
    config: Config,
    checkpoint: Checkpoint,
    estimator: MemoryEstimator,
    settings: BenchSettings,
    progress: Callable[[str], None],
) -> BenchReport:
    """Measure; takes a minute or so.

    Raises:
        NodeFailed: a node did not start or load the model.
    """
    model = config.models.default
    options = candidate_options(
        checkpoint, backend="cpu", dtype=config.models.dtype, dequantize=str(config.models.dequantize).lower()
    )[0]
    with ExitStack() as stack, TemporaryDirectory(prefix="runtime-bench-") as scratch:
        start = Starter(stack, Path(scratch), config, model)
        progress("starting one node and mlx-lm")
        one = start.node("one", settings.threads)
        blas = str(one.get("status")["blas"])
        contenders: dict[str, tuple[int, Contender]] = {
            "one node": (settings.threads, _node(one, model)),
            "mlx-lm": (settings.threads, start.mlx_lm(checkpoint, options, settings.threads)),
        }
        progress("starting a pipeline of two nodes, and one node to compare it with")
        single = start.node("single", settings.stage_threads)
        pair = start.pair(settings.stage_threads)
        idle = [_watch_memory(node) for node in pair]
        contenders["one node, as a stage"] = (settings.stage_threads, _node(single, model))
        contenders["two nodes"] = (settings.stage_threads, _node(pair[0], model))
        samples = _rounds(contenders, settings, int(checkpoint.text_config["vocab_size"]), progress)
        memory = _memory(pair, idle, model, checkpoint, estimator, options, settings)
    rows = tuple(_row(name, contenders[name][0], taken) for name, taken in samples.items())
    return BenchReport(
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        blas=blas,
        model=model,
        settings=settings,
        rows=rows,
        ratios=(
            _ratio("one node / mlx-lm, decode", samples["one node"], samples["mlx-lm"], _decode, ">= 0.97"),
            _ratio("one node / mlx-lm, prefill", samples["one node"], samples["mlx-lm"], _prefill, ""),
            _ratio(
                "two nodes / one, decode", samples["two nodes"], samples["one node, as a stage"], _decode, ">= 0.95"
            ),
            _ratio("two nodes / one, prefill", samples["two nodes"], samples["one node, as a stage"], _prefill, ""),
        ),
        memory=memory,
    )


class Starter:
    """Starts contenders that end with the stack."""

    def __init__(self, stack: ExitStack, scratch: Path, config: Config, model: str) -> None:
        self._stack = stack
        self._scratch = scratch
        self._model = model
        self._settings = (
            f"node.data_dir={config.node.data_dir}",
            f"models.default={json.dumps(model)}",
            f"models.path={json.dumps([str(path) for path in config.models.path])}",
            f"models.dtype={config.models.dtype}",
            f"models.dequantize={str(config.models.dequantize).lower()}",
            "models.keep_alive=-1",
            "log.level=warning",
        )

    def node(self, name: str, threads: int, *more: str, load: bool = True) -> NodeProcess:
        node = self._stack.enter_context(
            node_process(self._scratch, name, *self._settings, *more, env={"OPENBLAS_NUM_THREADS": str(threads)})
        )
        if load:
            node.load(self._model)
        return node

    def pair(self, threads: int, *more: str) -> tuple[NodeProcess, NodeProcess]:
        halves = ("cluster.listen=127.0.0.1:0", "roles.placement=even", *more)
        first = self.node("stage-1", threads, *halves, load=False)
        second = self.node("stage-2", threads, *halves, peers_of(first), load=False)
        deadline = time.monotonic() + SERVER_SECONDS
        while len(first.get("nodes")["nodes"]) < 2 or any(
            node.get("status")["blas"] is None for node in (first, second)
        ):
            if time.monotonic() > deadline:
                raise TimeoutError("the two nodes did not find each other")
            time.sleep(0.1)
        return first, second

    def mlx_lm(self, checkpoint: Checkpoint, options: LoadOptions, threads: int) -> Contender:
        process = subprocess.Popen(  # noqa: S603 - our own module, under this interpreter
            [
                sys.executable,
                "-m",
                "runtime.inference.reference",
                str(checkpoint.path),
                options.dtype,
                str(options.dequantize).lower(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        self._stack.enter_context(_ended(process))

        def generate(prompt: list[int], tokens: int) -> Sample:
            assert process.stdin is not None  # noqa: S101 - opened above, as is the other
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return Sample(len(prompt), len(answer["tokens"]), answer["first"], answer["last"])

        generate([1, 2, 3], 2)
        return generate


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.communicate("")


def _node(node: NodeProcess, model: str) -> Contender:
    client = httpx.Client(base_url=node.url, timeout=SERVER_SECONDS, trust_env=False)

    def generate(prompt: list[int], tokens: int) -> Sample:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        began = time.perf_counter()
        first = last = 0.0
        used = 0
        with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                last = time.perf_counter() - began
                first = first or last
                usage = json.loads(line[6:]).get("usage")
                used = usage["completion_tokens"] if usage else used
        return Sample(len(prompt), used, first, last)

    return generate


def _rounds(
    contenders: dict[str, tuple[int, Contender]],
    settings: BenchSettings,
    vocabulary: int,
    progress: Callable[[str], None],
) -> dict[str, list[Sample]]:
    """Run every contender once a round, after one round that is not counted; each round has its own prompt."""
    draw = random.Random(0)  # noqa: S311 - prompts, not secrets
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(settings.rounds + 1):
        progress(f"round {number} of {settings.rounds}" if number else "warming up")
        prompt = [draw.randrange(vocabulary // 8, vocabulary) for _ in range(settings.prompt_tokens)]
        # The order turns, so that none always follows the same one.
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            sample = contenders[name][1](prompt, settings.tokens)
            if number:
                samples[name].append(sample)
    return samples


def _decode(sample: Sample) -> float:
    return sample.decode


def _prefill(sample: Sample) -> float:
    return sample.prefill


def _row(name: str, threads: int, samples: Sequence[Sample]) -> Row:
    return Row(
        name=name,
        threads=threads,
        time_to_first_token=median(sample.first for sample in samples),
        prefill=median(map(_prefill, samples)),
        decode=median(map(_decode, samples)),
    )


def _ratio(
    name: str, ours: Sequence[Sample], theirs: Sequence[Sample], of: Callable[[Sample], float], aim: str
) -> Ratio:
    return compared(name, [of(sample) for sample in ours], [of(sample) for sample in theirs], aim)


def _watch_memory(node: NodeProcess) -> int:
    """Begin to record a process's peak anew; return what it has now, in bytes."""
    if sys.platform == "linux":
        # https://docs.kernel.org/filesystems/proc.html: writing 5 resets the peak resident size.
        Path(f"/proc/{node.process.pid}/clear_refs").write_text("5")
    return int(psutil.Process(node.process.pid).memory_info().rss)


def _memory(
    pair: Sequence[NodeProcess],
    idle: Sequence[int],
    model: str,
    checkpoint: Checkpoint,
    estimator: MemoryEstimator,
    options: LoadOptions,
    settings: BenchSettings,
) -> tuple[StageMemory, ...]:
    if sys.platform != "linux":
        return ()
    layers = pair[0].layers(model)
    length = settings.prompt_tokens + settings.tokens
    workload = Workload(context=length, sequences=1, prefill_chunk=settings.prompt_tokens)
    found = []
    for node, before in zip(pair, idle, strict=True):
        start, stop = layers[node.name][0], layers[node.name][1] + 1
        span = LayerSpan(start, stop, checkpoint.num_layers)
        parts = {part.name: part.bytes for part in estimator.estimate(checkpoint, span, workload, options).parts}
        needed = parts["weights"] + parts["KV cache"]
        peak = _peak(node.process.pid)
        found.append(StageMemory(node.name, str(span), before, peak, needed, (peak - before) / needed))
    return tuple(found)


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def describe(report: BenchReport) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """Return the report as tables: headings and rows."""
    tables: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = [
        (
            ("CONTENDER", "THREADS", "FIRST TOKEN", "PREFILL", "DECODE"),
            [
                (
                    row.name,
                    row.threads,
                    f"{row.time_to_first_token * 1000:.0f} ms",
                    f"{row.prefill:.1f} tok/s",
                    f"{row.decode:.1f} tok/s",
                )
                for row in report.rows
            ],
        ),
        (
            ("RATIO", "MEDIAN", "RANGE", "AIM"),
            [
                (each.name, f"{each.median:.3f}", f"{each.low:.3f} to {each.high:.3f}", each.aim)
                for each in report.ratios
            ],
        ),
    ]
    if report.memory:
        rows: list[tuple[Any, ...]] = [
            (
                each.node,
                each.layers,
                f"{each.idle / 1e6:.0f} MB",
                f"{each.peak / 1e6:.0f} MB",
                f"{each.weights_and_cache / 1e6:.0f} MB",
                f"{each.ratio:.2f}",
            )
            for each in report.memory
        ]
        tables.append((("STAGE", "LAYERS", "IDLE", "PEAK", "WEIGHTS + KV", "(PEAK-IDLE)/(W+KV)"), rows))
    return tables
