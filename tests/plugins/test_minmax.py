"""Placement by minmax: no plan is better, by brute force."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from runtime.spi import PlacementRequest
from runtime_minmax import search
from runtime_minmax.settings import MinmaxSettings
from tests.plugins.minmax_brute_force import bottleneck, every_cut, latency, permitted, weighed
from tests.plugins.minmax_cases import Cut, found, requests


@settings(max_examples=150)
@given(case=requests(), objective=st.sampled_from(["latency", "throughput"]))
def test_no_plan_in_any_order_is_better(case: tuple[PlacementRequest, dict[str, Any]], objective: str) -> None:
    request, configured = case
    check(request, objective, configured, list(every_cut(request, MinmaxSettings(**configured), any_order=True)))


@settings(max_examples=100)
@given(case=requests(nodes=5), objective=st.sampled_from(["latency", "throughput"]))
def test_with_more_nodes_no_plan_in_the_order_of_the_nodes_is_better(
    case: tuple[PlacementRequest, dict[str, Any]], objective: str
) -> None:
    request, configured = case
    # As if every order were too many for any number of nodes; without links to n0 the order is that of the names.
    ways = {pair: link for pair, link in request.links.items() if pair[0] != "n0"}
    request = structs.replace(request, links=ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "EVERY_ORDER_NODES", 0)
        check(request, objective, configured, list(every_cut(request, MinmaxSettings(**configured), any_order=False)))


def check(request: PlacementRequest, objective: str, configured: dict[str, Any], cuts: list[Cut]) -> None:
    """Compare what the policy finds with the best of all plans there are."""
    best = found(request, objective, configured)
    ratio = configured["prompt_ratio"]
    assert (best is None) == (not cuts)
    if best is None:
        return
    assert permitted(request, MinmaxSettings(**configured), best)
    request = weighed(request, objective)
    if objective == "throughput":
        least = min(bottleneck(request, cut, ratio) for cut in cuts)
        assert bottleneck(request, best, ratio) == pytest.approx(least, rel=1e-9, abs=1e-12)
        cuts = [cut for cut in cuts if bottleneck(request, cut, ratio) <= least]
        if not cuts:  # the sums were rounded otherwise here
            return
        assert latency(request, best, ratio) <= min(latency(request, cut, ratio) for cut in cuts) + 1e-9
        return
    least = min(latency(request, cut, ratio) for cut in cuts)
    assert latency(request, best, ratio) == pytest.approx(least, rel=1e-9, abs=1e-12)
