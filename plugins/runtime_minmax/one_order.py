"""Exact answers for stages in the order of the nodes, of which any may get none. For more nodes than have every order
tried: the time grows with N² x L."""

from __future__ import annotations

import numpy as np

from runtime_minmax.problem import Floats, Problem, Slice, least_start
from runtime_minmax.reach import Covered, Reach


def solve(problem: Problem) -> list[Slice] | None:
    """Return the plan of least latency whose stages come in the order of the nodes, or None if there is none."""
    least = np.full((problem.nodes, problem.layers + 1), np.inf)
    for node in range(problem.nodes):
        start = _entry(problem, least, node) - problem.work[node]
        least[node] = least_start(start[None], problem.lo[node], problem.hi[node])[0] + problem.work[node]
    total = least[:, -1] + problem.leave
    last = int(np.argmin(total))
    return _trace(problem, least, last) if np.isfinite(total[last]) else None


def covers(reach: Reach, bound: float) -> Covered | None:
    """Cover all layers, in the order of the nodes, with stages that are busy for at most ``bound``; None if none do."""
    covered = Covered(0, 0.0)
    for node in range(reach.nodes):
        if covered.stop == reach.layers:
            break
        covered = reach.extend(covered, node, bound) or covered
    return covered if covered.stop == reach.layers else None


def _entry(problem: Problem, least: Floats, node: int) -> Floats:
    """Return the least seconds until a slice on ``node`` may start at each layer: (L + 1,)."""
    entry = np.full(problem.layers + 1, np.inf)
    if node:
        entry = (least[:node] + problem.hop[:node, node][:, None]).min(axis=0)
    entry[0] = problem.enter[node]
    return entry


def _trace(problem: Problem, least: Floats, last: int) -> list[Slice]:
    """Find the slices again that led to the end of the last one."""
    plan: list[Slice] = []
    node, stop = last, problem.layers
    while True:
        lo, hi = int(problem.lo[node, stop]), int(problem.hi[node, stop])
        cost = _entry(problem, least, node) - problem.work[node]
        start = lo + int(np.argmin(cost[lo : hi + 1]))
        plan.append(Slice(node, start, stop))
        if start == 0:
            return plan[::-1]
        before = least[:node, start] + problem.hop[:node, node]
        node, stop = int(np.argmin(before)), start
