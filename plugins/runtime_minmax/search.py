"""The plan of least latency, and the plan of the least bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nextafter
from typing import NamedTuple

import numpy as np

from runtime_minmax import every_order, one_order
from runtime_minmax.problem import Problem, Slice
from runtime_minmax.reach import Reach

EVERY_ORDER_NODES = 8
"""Nodes up to which the stages may come in any order; with more they come in the order of the nodes."""


class Found(NamedTuple):
    """The best plan."""

    plan: list[Slice]
    latency_with: Mapping[int, float]
    """The least latency of a plan that uses the node, infinite if there is none. Empty where not every order was
    tried."""


def least_latency(problem: Problem) -> Found | None:
    """Return the plan in which one unit of work takes least, or None if there is none."""
    if problem.nodes <= EVERY_ORDER_NODES:
        answer = every_order.solve(problem)
        return None if answer is None else Found(answer.plan, answer.latency_with)
    plan = one_order.solve(problem)
    return None if plan is None else Found(plan, {})


def least_bottleneck(problem: Problem) -> Found | None:
    """Return the plan whose busiest stage or line is busy least, or None if there is none.

    Of several such plans it is the one of least latency: stages that take no work off the busiest are not used.
    """
    alone, together = _alone(problem), _together(problem)
    least = min(alone, together)
    if least == inf:
        return None
    found = []
    if alone == least:
        found.append(least_latency(_uncut(problem).bounded(least)))
    if together == least:
        found.append(least_latency(_without_slow_lines(problem, least).bounded(least)))
    return min((each for each in found if each is not None), key=lambda each: problem.latency(each.plan))


def _alone(problem: Problem) -> float:
    """Return the least time in which one node takes all layers; infinite if none can."""
    whole = [Slice(node, 0, problem.layers) for node in range(problem.nodes)]
    return min((problem.busy(part) for part in whole if problem.allows(part)), default=inf)


def _together(problem: Problem) -> float:
    """Return the least bottleneck of any number of stages, lines included; infinite if there is no plan.

    By bisection. What a plan attains is the time of some slice or line, so a success lowers the upper end to that, and
    the search is over when nothing below the upper end succeeds.
    """
    reach = Reach(problem)
    covers = every_order.covers if problem.nodes <= EVERY_ORDER_NODES else one_order.covers
    covered = covers(reach, inf)
    if covered is None:
        return inf
    best, failed = covered.busiest, 0.0
    while True:
        middle = (failed + best) / 2
        covered = covers(reach, middle) if middle < best else None
        if covered is None:
            failed = middle
            covered = covers(reach, nextafter(best, -inf))
        if covered is None:
            return best
        best = covered.busiest


def _uncut(problem: Problem) -> Problem:
    """Return the problem in which the only slices are those of all layers."""
    everything = np.arange(problem.layers + 1) == problem.layers
    return problem._replace(hi=np.where(everything, np.minimum(problem.hi, 0), -1))


def _without_slow_lines(problem: Problem, bottleneck: float) -> Problem:
    """Return the problem in which nodes whose lines are busy for longer get nothing."""
    return problem._replace(hi=np.where((problem.line > bottleneck)[:, None], -1, problem.hi))
