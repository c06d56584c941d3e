"""How long the placement policy ``minmax`` takes: ``python -m benchmarks.placement [--json]``.

Every case has nodes of seven speeds and of memory that differs from node to node, so that no two are alike, and links
between the first sixteen, as a survey measures them. The least of several runs counts.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Literal

from runtime.spi import LayerSeconds, LayerSpan, Link, MemoryEstimate, NodeMemory, NodeView, Part, PlacementRequest
from runtime_minmax.policy import MinmaxPlacement
from runtime_minmax.settings import MinmaxSettings

MIB = 1 << 20
CASES = ((32, 2), (80, 8), (100, 10), (200, 100), (200, 1000))
"""Layers and nodes."""
RUNS = 5

Objective = Literal["latency", "throughput"]


def request(layers: int, nodes: int) -> PlacementRequest:
    """Return a request in which the memory of all nodes together is about twice what the model needs."""
    names = [f"node-{index:04}" for index in range(nodes)]
    views = tuple(
        NodeView(name, NodeMemory(1 << 40, (30 + 20 * layers // nodes + index % 100) * MIB), "cpu", ("dense",))
        for index, name in enumerate(names)
    )

    def estimate(span: LayerSpan) -> MemoryEstimate:
        return MemoryEstimate((Part("weights", len(span) * 10 * MIB), Part("overhead", 5 * MIB)))

    return PlacementRequest(
        model="m",
        layers=layers,
        nodes=views,
        estimate=estimate,
        seconds={
            name: LayerSeconds(
                *((each,) * layers for each in (0.001 * (1 + index % 7), 0.0002 * (1 + index % 7), 0.0001))
            )
            for index, name in enumerate(names)
        },
        links={(one, other): Link(0.0005, 1e8) for one in names[:16] for other in names[:16] if one != other},
        hidden_bytes=8192,
    )


def measure(layers: int, nodes: int, objective: Objective) -> dict[str, Any]:
    """Time one case."""
    asked = request(layers, nodes)
    policy = MinmaxPlacement(MinmaxSettings(objective=objective))
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        plan = policy.plan(asked)
        taken.append(time.perf_counter() - start)
    return {
        "layers": layers,
        "nodes": nodes,
        "objective": objective,
        "stages": len(plan.stages),
        "milliseconds": round(min(taken) * 1000, 1),
    }


def main() -> None:
    """Measure every case, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Time the placement policy minmax.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    objectives: tuple[Objective, ...] = ("latency", "throughput")
    rows = [measure(layers, nodes, objective) for layers, nodes in CASES for objective in objectives]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("| Layers | Nodes | Objective | Stages | Milliseconds |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
