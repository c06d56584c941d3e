"""The question that placement is, in numbers, and what an answer to it costs.

A chain of L layers is cut into slices, each on a node of its own; a node may get none. For node n and a slice of the
layers [i, j), with everything in seconds for one unit of work (a token, with its share of prompt):

- the slice takes ``work[n, j] - work[n, i]``, where ``work`` is the running sum of the layers' times;
- it is allowed if ``lo[n, j] <= i <= hi[n, j]``: what memory, limits and pins leave;
- going from a stage on m to the next one on n takes ``hop[m, n]``; from the driver to the first stage ``enter[n]``,
  and from the last one back ``leave[n]``;
- the node's own line to the others is busy for ``line[n]`` if there is more than one stage.

*Latency* is the sum over all stages and hops: the time of one unit alone in the pipeline. *Bottleneck* is the most
that any stage or line is busy for a unit: its inverse is how many units a full pipeline does in a second.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Slice(NamedTuple):
    """Layers ``start`` to ``stop - 1`` on the node with this index."""

    node: int
    start: int
    stop: int


class Problem(NamedTuple):
    """See the module. N nodes, L layers."""

    work: Floats
    """(N, L + 1), nondecreasing along the layers."""
    lo: Ints
    """(N, L + 1), nondecreasing along the layers."""
    hi: Ints
    """(N, L + 1)."""
    hop: Floats
    """(N, N)."""
    enter: Floats
    """(N,)."""
    leave: Floats
    """(N,)."""
    line: Floats
    """(N,)."""

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.work.shape[0])

    @property
    def layers(self) -> int:
        """L."""
        return int(self.work.shape[1]) - 1

    def allows(self, part: Slice) -> bool:
        """Whether the node may hold the slice."""
        return bool(self.lo[part.node, part.stop] <= part.start <= self.hi[part.node, part.stop])

    def busy(self, part: Slice) -> float:
        """Seconds that the slice takes."""
        return float(self.work[part.node, part.stop] - self.work[part.node, part.start])

    def latency(self, plan: list[Slice]) -> float:
        """Seconds that one unit of work takes from the driver and back."""
        hops = sum(self.hop[before.node, after.node] for before, after in pairwise(plan))
        ends = self.enter[plan[0].node] + self.leave[plan[-1].node]
        return float(sum(self.busy(part) for part in plan) + hops + ends)

    def bottleneck(self, plan: list[Slice]) -> float:
        """Seconds that the busiest stage or line is busy for one unit of work."""
        lines = [float(self.line[part.node]) for part in plan] if len(plan) > 1 else []
        return max([self.busy(part) for part in plan] + lines)

    def bounded(self, bottleneck: float) -> Problem:
        """Return the problem in which no slice is busier than ``bottleneck``. Lines are not looked at."""
        lo = self.lo.copy()
        for node, work in enumerate(self.work):
            # In just the operations of busy(), so that a bound which is attained allows what attains it.
            lo[node] = np.maximum(lo[node], (work[None, :] - work[:, None] > bottleneck).sum(axis=0))
        return self._replace(lo=lo)


def least_start(cost: Floats, lo: Ints, hi: Ints) -> Floats:
    """Return, for each end j of a slice, the least of ``cost[lo[j]..hi[j]]``, infinite where that is empty.

    By a sparse table (https://en.wikipedia.org/wiki/Range_minimum_query): the least of every run of 2^k costs.

    Args:
        cost: (rows, L + 1), of a slice's start.
        lo: (L + 1,).
        hi: (L + 1,).

    Returns:
        (rows, L + 1).
    """
    length = hi - lo + 1
    found = np.full(cost.shape, np.inf)
    run = 1
    while True:
        ends = np.flatnonzero((length >= run) & (length < 2 * run))
        if ends.size:
            found[:, ends] = np.minimum(cost[:, lo[ends]], cost[:, hi[ends] - run + 1])
        if 2 * run > length.max():
            return found
        cost = np.minimum(cost[:, :-run], cost[:, run:])
        run *= 2
