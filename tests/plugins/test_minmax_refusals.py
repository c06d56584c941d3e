"""Placement by minmax says what does not fit, and who is left out."""

from __future__ import annotations

import pytest

from runtime.errors import PlacementRefused
from tests.plugins.minmax_cases import a_node, a_request, placed, reason


def test_a_refusal_shows_what_is_needed_and_how_much_of_it_each_node_can_hold() -> None:
    request = a_request(20, (a_node("studio", 95), a_node("mini", 35), a_node("tiny", 3)))
    with pytest.raises(PlacementRefused) as refusal:
        placed(request, max_layers={"mini": 2})
    text = refusal.value.message
    assert "m does not fit: no cut of its 20 layers fits 3 node(s)." in text
    assert "Wanted by the configuration: at most 2 layers on mini." in text
    assert "layers 0-19 of 20   225 MiB  weights 200 MiB, logits 20 MiB, overhead 5 MiB" in text
    lines = [line.split() for line in text.splitlines()]
    held = {line[0]: line[-2:] for line in lines if line and line[0] in ("studio", "mini", "tiny")}
    assert held == {"studio": ["9", "layers"], "mini": ["2", "layers"], "tiny": ["0", "layers"]}


def test_nodes_that_cannot_hold_a_layer_or_run_no_family_are_named() -> None:
    request = a_request(2, (a_node("a"), a_node("full", 1), a_node("bare", families=())))
    assert "full cannot hold a single layer" in reason(request)
    assert "no model family runs on bare" in reason(request)


def test_no_node_at_all_is_refused() -> None:
    with pytest.raises(PlacementRefused, match="no node is up"):
        placed(a_request(4, ()))
