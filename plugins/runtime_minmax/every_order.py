"""Exact answers over every order of the nodes: dynamic programming over the sets of nodes used so far.

The work grows with 2^N, so this is for few nodes. For 8 nodes and 100 layers it takes a hundredth of a second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from runtime_minmax.problem import Floats, Ints, Problem, Slice, least_start
from runtime_minmax.reach import Covered, Reach


class Answer(NamedTuple):
    """The plan of least latency, and the least latency of a plan that uses each node, infinite if there is none."""

    plan: list[Slice]
    latency_with: dict[int, float]


def solve(problem: Problem) -> Answer | None:
    """Return the plan of least latency, or None if there is none. Of equal ones it has the fewest stages."""
    nodes, width = problem.nodes, problem.layers + 1
    # Least seconds until the end of a slice: by the set of nodes used, the last of them, and where its slice stops.
    least = np.full((1 << nodes, nodes, width), np.inf)
    sets = np.arange(1 << nodes)
    sizes = np.array([used.bit_count() for used in range(1 << nodes)])
    for node in range(nodes):
        least[1 << node, node] = _slices(_first(problem, node), problem, node)
    for size in range(1, nodes):
        for node in range(nodes):
            before = sets[(sizes == size) & (sets >> node & 1 == 0)]
            entry = (least[before] + problem.hop[:, node][None, :, None]).min(axis=1)
            least[before | 1 << node, node] = _slices(entry, problem, node)
    total = least[:, :, -1] + problem.leave
    fewest_first = np.lexsort((sets, sizes))
    at = int(np.argmin(total[fewest_first]))
    used, last = int(fewest_first[at // nodes]), at % nodes
    if not np.isfinite(total[used, last]):
        return None
    latency_with = {node: float(total[sets >> node & 1 == 1].min()) for node in range(nodes)}
    return Answer(_trace(problem, least, used, last), latency_with)


def covers(reach: Reach, bound: float) -> Covered | None:
    """Cover all layers with stages that are busy for at most ``bound``; None if that cannot be."""
    farthest: list[Covered | None] = [None] * (1 << reach.nodes)
    farthest[0] = Covered(0, 0.0)
    for used in range(1 << reach.nodes):
        covered = farthest[used]
        if covered is None:
            continue
        if covered.stop == reach.layers:
            return covered
        for node in range(reach.nodes):
            if used >> node & 1:
                continue
            further = reach.extend(covered, node, bound)
            if further is not None:
                known = farthest[used | 1 << node]
                if known is None or further.stop > known.stop:
                    farthest[used | 1 << node] = further
    return None


def _first(problem: Problem, node: int) -> Floats:
    """Return the seconds until the first stage may start, which is at layer 0: (1, L + 1)."""
    entry = np.full((1, problem.layers + 1), np.inf)
    entry[0, 0] = problem.enter[node]
    return entry


def _slices(entry: Floats, problem: Problem, node: int) -> Floats:
    """Return the least seconds until a slice on ``node`` ends, given those until it starts; both (rows, L + 1)."""
    work: Floats = problem.work[node]
    return least_start(entry - work, problem.lo[node], problem.hi[node]) + work


def _trace(problem: Problem, least: Floats, used: int, last: int) -> list[Slice]:
    """Find the slices again that led to the end of the last one."""
    plan: list[Slice] = []
    node, stop = last, problem.layers
    while True:
        used ^= 1 << node
        lo: Ints = problem.lo[node, stop]
        if not used:
            plan.append(Slice(node, 0, stop))
            return plan[::-1]
        entry = least[used] + problem.hop[:, node][:, None] - problem.work[node]
        within = entry[:, lo : problem.hi[node, stop] + 1]
        before, offset = divmod(int(np.argmin(within)), within.shape[1])
        plan.append(Slice(node, int(lo) + offset, stop))
        node, stop = before, int(lo) + offset
