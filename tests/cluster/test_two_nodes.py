"""Two real nodes serve the embedded model together, each with half of its layers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, run_runtime
from tests.conftest import MODEL, STORY, Reference

pytestmark = pytest.mark.slow


def listed(node: NodeProcess, verb: str) -> Any:
    done = run_runtime(verb, "--json", "--url", node.url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tell(node: NodeProcess, max_tokens: int, **options: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": STORY}], "temperature": 0}
    response = node.post("/v1/chat/completions", {**body, "max_tokens": max_tokens, **options})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_each_node_lists_both(two_nodes: tuple[NodeProcess, NodeProcess]) -> None:
    for node, other in (two_nodes, two_nodes[::-1]):

        def entries(node: NodeProcess = node) -> dict[str, Any]:
            return {entry["name"]: entry for entry in listed(node, "nodes")}

        # What a node says of itself comes a moment after the link.
        eventually(lambda: entries()[other.name]["address"], f"{node.name} hears of {other.name}")  # noqa: B023 - at once
        found = entries()
        assert {name: entry["state"] for name, entry in found.items()} == {node.name: "self", other.name: "up"}
        assert found[other.name]["address"] == other.address
        assert found[other.name]["backend"] == "cpu"
        assert found[other.name]["memory_total"] > 0


def test_each_node_says_which_layers_are_where(two_nodes: tuple[NodeProcess, NodeProcess]) -> None:
    a, b = two_nodes
    a.load(MODEL)
    for node in two_nodes:
        (served,) = listed(node, "ps")
        assert served["name"] == MODEL
        split = {stage["node"]: (stage["first_layer"], stage["last_layer"]) for stage in served["stages"]}
        assert sorted(split.values()) == [(0, 14), (15, 29)]
        assert split.keys() == {"a", "b"}
        assert all(stage["bytes"] > 0 for stage in served["stages"])
    assert (a.get("status")["nodes"], b.get("status")["nodes"]) == (2, 2)


def test_a_plan_is_where_the_model_is_then_placed_and_places_nothing(
    two_nodes: tuple[NodeProcess, NodeProcess], tmp_path: Path
) -> None:
    a, _ = two_nodes
    model = str(tiny_llama(tmp_path / "planned"))
    done = run_runtime("plan", model, "--context", "512", "--json", "--url", a.url)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert model not in [served["name"] for served in a.get("ps")["models"]]
    assert (report["layers"], report["context"]) == (4, 512)
    assert {node["name"] for node in report["nodes"]} == {"a", "b"}
    a.load(model)
    planned = {stage["node"]: (stage["first_layer"], stage["last_layer"]) for stage in report["stages"]}
    assert planned == a.layers(model)
    a.unload(model)


def test_sixty_four_greedy_tokens_over_two_nodes_are_those_of_mlx_lm_and_of_one_node(
    two_nodes: tuple[NodeProcess, NodeProcess], node: NodeProcess, chats: dict[str, Reference]
) -> None:
    expected = chats[STORY]
    assert len(expected.tokens) == 64
    # One of the two has the model's driver; the other passes on what it is asked.
    for asked, count in zip(two_nodes, (64, 8), strict=True):
        choice = tell(asked, count, logprobs=True)
        assert [scored["token"] for scored in choice["logprobs"]["content"]] == expected.texts[:count]
        logprobs = [scored["logprob"] for scored in choice["logprobs"]["content"]]
        assert logprobs == pytest.approx(expected.logprobs[:count], abs=1e-3)
    assert len(two_nodes[0].layers(MODEL)) == 2
    assert tell(node, 64)["message"]["content"] == expected.text
    assert list(node.layers(MODEL)) == ["solo"]


def test_several_generations_share_the_pipeline_and_keep_their_texts(
    two_nodes: tuple[NodeProcess, NodeProcess],
) -> None:
    seeds = range(4)
    alone = [tell(two_nodes[0], 8, temperature=1, seed=seed)["message"]["content"] for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(
            pool.map(lambda seed: tell(two_nodes[seed % 2], 8, temperature=1, seed=seed)["message"]["content"], seeds)
        )
    assert together == alone
    assert len(set(alone)) == len(seeds)


def test_nodes_that_are_asked_at_the_same_moment_place_a_model_once(
    two_nodes: tuple[NodeProcess, NodeProcess], tmp_path: Path
) -> None:
    model = str(tiny_llama(tmp_path / "wanted"))

    def complete(node: NodeProcess) -> str:
        response = node.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 8, "temperature": 0})
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["text"])

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(complete, 4 * two_nodes))
    assert len(set(texts)) == 1
    logs = [node.log for node in two_nodes]
    assert sum(log.count(f"placing {model}") for log in logs) == 1
    for node in two_nodes:
        assert [served["name"] for served in node.get("ps")["models"]].count(model) == 1
    two_nodes[1].unload(model)
    for node in two_nodes:
        eventually(lambda node=node: node.layers(model) == {}, f"{node.name} knows that it is unloaded")  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
