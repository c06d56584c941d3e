"""Measure whether nodes judge each other rightly, in simulation over many seeds; see docs/reliability.md.

    uv run python -m benchmarks.reliability --seeds 1000
    uv run python -m benchmarks.reliability --only "power cut" --seeds 1 --first 17 --trace
    uv run python -m benchmarks.reliability --processes

A seed that fails is named, and the second command shows what happened in it. The third one measures real nodes in
processes of their own, for about three minutes. The exit status is 1 where an aim is not met. Seeds run at the lowest
priority.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
from loguru import logger

from benchmarks.chaos.processes import burn_cores, kill, stop_for_a_while
from benchmarks.chaos.scenarios import SCENARIOS, Outcome, play
from runtime.testing.simulation import simulate

DETECTION_AIM = 8.0
"""Seconds of virtual time in which 99 of 100 losses are to be noticed."""
NOTICED_AIM = 1.0
"""Seconds in which a real process that is killed is to be noticed, by its connections."""
BURNING = 60.0
"""Seconds for which the cores of real nodes are burned."""
TRANSITIONS_AIM = 1
"""Changes that one observer may tell of one event."""


class Row(msgspec.Struct, frozen=True):
    """What all seeds of one scenario came to. Times are in seconds of virtual time."""

    scenario: str
    seeds: int
    seconds: float
    false_downs: int
    suspicions: int
    detection_p50: float | None
    detection_p99: float | None
    detection_most: float | None
    most_transitions: int
    failed: tuple[tuple[int, str], ...]
    """Seed and complaint of each that did not go as it should."""

    @property
    def met(self) -> bool:
        """Whether every aim is met."""
        return not (
            self.failed
            or self.false_downs
            or self.most_transitions > TRANSITIONS_AIM
            or (self.detection_p99 or 0.0) > DETECTION_AIM
        )


def outcome(scenario: str, seed: int) -> Outcome:
    """Play one seed, in this process."""
    return simulate(play(scenario, seed))[0]


def summarise(scenario: str, outcomes: list[Outcome]) -> Row:
    """Make a row of the outcomes of one scenario."""
    detections = sorted(seconds for one in outcomes for seconds in one.detections)
    return Row(
        scenario,
        len(outcomes),
        sum(one.seconds for one in outcomes),
        sum(one.false_downs for one in outcomes),
        sum(one.suspicions for one in outcomes),
        _percentile(detections, 0.5),
        _percentile(detections, 0.99),
        _percentile(detections, 1.0),
        max(one.most_transitions for one in outcomes),
        tuple((one.seed, one.complaint) for one in outcomes if one.complaint),
    )


def sweep(scenarios: list[str], seeds: range, jobs: int) -> Iterator[Row]:
    """Play all seeds of each scenario, and yield a row for each."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_be_quiet) as pool:
        for scenario in scenarios:
            yield summarise(scenario, list(pool.map(partial(outcome, scenario), seeds, chunksize=5)))


def measure_processes() -> bool:
    """Measure real nodes, print what came of it, and return whether every aim is met."""
    with tempfile.TemporaryDirectory() as folder:
        stopped = stop_for_a_while(Path(folder, "stopped"))
        print(f"SIGSTOP of each node for 2.5 s: {len(stopped)} nodes called down", *stopped, sep="\n  ", flush=True)
        burned = burn_cores(Path(folder, "burned"), BURNING)
        print(f"every core burned for {BURNING:g} s: {len(burned)} nodes called down", *burned, sep="\n  ", flush=True)
        noticed = kill(Path(folder, "killed"))
        print(f"kill -9: noticed after {noticed:.3f} s")
    return not stopped and not burned and noticed < NOTICED_AIM


def _be_quiet() -> None:
    logger.remove()
    os.nice(19)


def _percentile(values: list[float], part: float) -> float | None:
    """Return the least value that is not exceeded by this part of the sorted values."""
    return values[max(0, -int(-part * len(values) // 1) - 1)] if values else None


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| Scenario | Seeds | Virtual hours | False down | Suspicions | Detected p50 / p99 / most | Transitions |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        detected = "-"
        if row.detection_p50 is not None:
            detected = f"{row.detection_p50:.2f} / {row.detection_p99:.2f} / {row.detection_most:.2f} s"
        transitions = f"{row.most_transitions} at most" if row.most_transitions else "-"
        yield (
            f"| {row.scenario} | {row.seeds} | {row.seconds / 3600:.1f} | {row.false_downs} | {row.suspicions} "
            f"| {detected} | {transitions} |"
        )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds of each scenario")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="scenarios whose names have this in them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    parser.add_argument("--trace", action="store_true", help="print the traces too, frames included")
    parser.add_argument("--processes", action="store_true", help="measure real processes instead of simulated ones")
    options = parser.parse_args()
    if options.processes:
        return 0 if measure_processes() else 1
    scenarios = [name for name in SCENARIOS if options.only in name]
    seeds = range(options.first, options.first + options.seeds)
    if options.trace:
        logger.remove()
        for scenario in scenarios:
            for seed in seeds:
                played, world = simulate(play(scenario, seed, keep_frames=True))
                print(f"{scenario}, seed {seed}:\n{world.trace}\n{msgspec.json.encode(played).decode()}")
        return 0
    rows = []
    for row in sweep(scenarios, seeds, options.jobs):
        rows.append(row)
        print(f"{time.strftime('%H:%M:%S')} {row.scenario}: {'ok' if row.met else 'FAILED'}", file=sys.stderr)
        for seed, complaint in row.failed:
            print(f"  seed {seed}: {complaint}", file=sys.stderr)
        if options.json:
            print(msgspec.json.encode(row).decode(), flush=True)
    if not options.json:
        print("\n".join(_table(rows)))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
