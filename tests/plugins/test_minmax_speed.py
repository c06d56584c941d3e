"""Placement by minmax is made in time."""

from __future__ import annotations

import time

import pytest

from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings
from tests.plugins.minmax_cases import a_node, a_request, links, steady


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize(("layers", "count", "seconds"), [(100, 10, 0.05), (200, 1000, 5.0)])
def test_plans_are_made_in_time(objective: str, layers: int, count: int, seconds: float) -> None:
    names = [f"n{index:04}" for index in range(count)]
    nodes = tuple(a_node(name, 30 + 20 * layers // count + index % 100) for index, name in enumerate(names))
    known = {name: steady(layers, 1 + index % 7) for index, name in enumerate(names)}
    request = a_request(layers, nodes, seconds=known, links=links(0.0005, *names[:16]), hidden_bytes=8192)
    policy = MinmaxPlacement(MinmaxSettings.model_validate({"objective": objective}))
    taken = []
    for _ in range(5):  # a busy machine makes any one of them slow
        start = time.perf_counter()
        policy.plan(request)
        taken.append(time.perf_counter() - start)
        if taken[-1] <= seconds:
            return
    pytest.fail(f"the fastest of {len(taken)} plans took {min(taken):.3f} s")
