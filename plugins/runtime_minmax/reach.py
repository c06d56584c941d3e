"""How far each node gets from each layer, for the search of the least bottleneck."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from runtime_minmax.problem import Problem


class Covered(NamedTuple):
    """Layers before ``stop`` are on stages, of which none, nor its line, is busy for longer than ``busiest``."""

    stop: int
    busiest: float


class Reach:
    """For every node and start, the farthest end of an allowed slice.

    A node that starts later gets no less far, because a slice needs no less than one within it. So of two ways to
    cover layers with the same nodes, the one that gets farther is never worse for the bottleneck. A node that the bound
    leaves with only some of the layers pinned to it gets them; nobody may take the others, so nothing comes of it.
    """

    def __init__(self, problem: Problem) -> None:
        self.nodes, self.layers = problem.nodes, problem.layers
        self._work: list[list[float]] = problem.work.tolist()
        self._line: list[float] = problem.line.tolist()
        self._farthest: list[list[int]] = []
        starts, stops = np.arange(self.layers + 1)[:, None], np.arange(self.layers + 1)[None, :]
        for lo, hi in zip(problem.lo, problem.hi, strict=True):
            allowed = (lo[None, :] <= starts) & (starts <= hi[None, :])
            self._farthest.append(np.where(allowed, stops, -1).max(axis=1).tolist())

    def extend(self, covered: Covered, node: int, bound: float) -> Covered | None:
        """Put as many further layers on a node as keep it and its line busy for at most ``bound``."""
        line = self._line[node]
        if line > bound:
            return None
        work, start = self._work[node], covered.stop
        stop = min(self._farthest[node][start], bisect_right(work, work[start] + bound) - 1)
        while stop > start and work[stop] - work[start] > bound:  # the sum above was rounded
            stop -= 1
        if stop <= start:
            return None
        return Covered(stop, max(covered.busiest, line, work[stop] - work[start]))
