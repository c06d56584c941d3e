"""Every plan that memory and settings permit, and what each costs: computed once more, as simply as can be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

from msgspec import structs

from runtime.spi import LayerSpan, Link, PlacementRequest
from runtime_minmax.costs import UNMEASURED_LINK
from runtime_minmax.settings import MinmaxSettings, pinned_layers
from tests.plugins.minmax_cases import Cut


def every_cut(request: PlacementRequest, configured: MinmaxSettings, *, any_order: bool) -> Iterator[Cut]:
    """Every plan that memory and settings permit."""
    names = [node.name for node in request.nodes]
    orders = permutations if any_order else combinations
    for stages in range(1, len(names) + 1):
        for order in orders(names, stages):
            for inner in combinations(range(1, request.layers), stages - 1):
                bounds = pairwise((0, *inner, request.layers))
                cut = tuple((name, start, stop) for name, (start, stop) in zip(order, bounds, strict=True))
                if permitted(request, configured, cut):
                    yield cut


def permitted(request: PlacementRequest, configured: MinmaxSettings, cut: Cut) -> bool:
    grantable = {node.name: node.memory.grantable for node in request.nodes}
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    return (
        all(request.estimate(LayerSpan(a, b, request.layers)).total <= grantable[name] for name, a, b in cut)
        and all(b - a <= configured.max_layers.get(name, request.layers) for name, a, b in cut)
        and all(
            holder[layer] == name
            for name, text in configured.pin.get(request.model, {}).items()
            for layer in range(*pinned_layers(text))
        )
    )


def way(request: PlacementRequest, sender: str, receiver: str) -> Link:
    if sender == receiver:
        return Link(0.0, float("inf"))
    return request.links.get((sender, receiver)) or request.links.get((receiver, sender)) or UNMEASURED_LINK


def weighed(request: PlacementRequest, objective: str) -> PlacementRequest:
    """Return the request with the seconds of a token that the objective looks at in ``decode``."""
    if objective == "latency":
        return request
    seconds = {name: structs.replace(each, decode=each.batched) for name, each in request.seconds.items()}
    return structs.replace(request, seconds=seconds)


def busy(request: PlacementRequest, name: str, start: int, stop: int, ratio: float) -> float:
    seconds = request.seconds[name]
    return sum(seconds.decode[start:stop]) + ratio * sum(seconds.prefill[start:stop])


def latency(request: PlacementRequest, cut: Cut, ratio: float) -> float:
    total = sum(busy(request, *stage, ratio) for stage in cut)
    for (before, _, _), (after, _, _) in pairwise(cut):
        link = way(request, before, after)
        total += link.latency + request.hidden_bytes * (1 + ratio) / link.bandwidth
    driver = request.nodes[0].name
    return total + way(request, driver, cut[0][0]).latency + way(request, cut[-1][0], driver).latency


def bottleneck(request: PlacementRequest, cut: Cut, ratio: float) -> float:
    most = max(busy(request, *stage, ratio) for stage in cut)
    if len(cut) > 1:
        for name, _, _ in cut:
            others = (node.name for node in request.nodes if node.name != name)
            ways = [way(request, name, other) for other in others]
            known = [link.bandwidth for link in ways if link is not UNMEASURED_LINK]
            fastest = max(known, default=UNMEASURED_LINK.bandwidth)
            most = max(most, request.hidden_bytes * (1 + ratio) / fastest)
    return most
