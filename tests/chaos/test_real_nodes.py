"""Real nodes in processes of their own: stopped, starved, killed and started again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chaos.processes import CLUSTER, burn_cores, kill, losses, see_each_other, stop_for_a_while
from runtime.testing.models import tiny_llama
from runtime.testing.processes import eventually, node_process, peers_of

pytestmark = pytest.mark.slow


def test_a_node_that_is_stopped_for_two_and_a_half_seconds_is_not_down(tmp_path: Path) -> None:
    assert stop_for_a_while(tmp_path) == []


def test_nodes_that_get_little_of_their_cores_are_not_down(tmp_path: Path) -> None:
    assert burn_cores(tmp_path, seconds=12) == []


def test_a_killed_node_is_noticed_by_its_connections_within_a_second(tmp_path: Path) -> None:
    assert kill(tmp_path) < 1


def test_a_node_that_returns_is_used_again_and_nothing_else_is_restarted(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "tiny")
    model = str(tmp_path / "tiny")
    with node_process(tmp_path, "a", *CLUSTER) as a:
        with node_process(tmp_path, "b", *CLUSTER, peers_of(a)) as b:
            see_each_other(a, b)
            address = b.address
            a.load(model)
            assert set(a.layers(model)) == {"a", "b"}
            b.kill()
            eventually(lambda: a.sees()["b"] == "down" and not a.layers(model), "the model is let go of")
        assert len([line for line in losses(a) if "is gone" in line]) == 1
        with node_process(tmp_path, "b", *CLUSTER, f"cluster.listen={address}", peers_of(a)) as again:
            see_each_other(a, again)
            a.load(model)
            assert set(a.layers(model)) == {"a", "b"}
            answer = again.post("/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 4})
            assert answer.status_code == 200, answer.text
            assert json.loads(answer.text)["choices"]
