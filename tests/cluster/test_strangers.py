"""Nodes that do not get along, and three that do."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of, run_runtime
from tests.conftest import ONE_THREAD, Reference, ask_mlx_lm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("strangers")]  # in one process, so that three nodes start once

DTYPES = ("float32", "bfloat16", "float16")


def free_address() -> str:
    """An address that was free a moment ago, for nodes that must know each other's before they start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def complete(node: NodeProcess, model: Path, prompt: str = "the quick", max_tokens: int = 16) -> dict[str, Any]:
    body = {"model": str(model), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1}
    response = node.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert isinstance(choice, dict)
    return choice


def refusal(node: NodeProcess, word: str) -> str:
    """Wait until the node says that it does not reach the address that it dials for a reason with this word in it."""

    def reasons() -> list[str]:
        nodes = node.get("nodes")["nodes"]
        return [entry["reason"] for entry in nodes if entry["state"] == "unreached" and word in entry["reason"]]

    (reason,) = eventually(reasons, f"{node.name} says why, with the word {word!r}", seconds=20)
    assert reason in node.log
    return reason


def test_nodes_with_different_keys_stay_alone_and_say_why(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    left, right = free_address(), free_address()
    with (
        node_process(
            tmp_path, "left", f"cluster.listen={left}", "cluster.key=first secret", f'plugins.static.peers=["{right}"]'
        ) as one,
        node_process(
            tmp_path, "right", f"cluster.listen={right}", "cluster.key=other secret", f'plugins.static.peers=["{left}"]'
        ) as two,
    ):
        for node in (one, two):
            refusal(node, "cluster key")
            assert "secret" not in node.log
            assert len(complete(node, model)["logprobs"]["tokens"]) == 16
            assert node.layers(str(model)) == {node.name: (0, 3)}
        listing = run_runtime("nodes", "--url", one.url).stdout
        assert "unreached" in listing
        assert right in listing
        assert "cluster key" in listing


def test_a_second_node_with_the_same_name_is_refused(tmp_path: Path) -> None:
    settings = ("cluster.listen=127.0.0.1:0", "cluster.key=a shared secret")
    with (
        node_process(tmp_path / "one", "twin", *settings) as one,
        node_process(tmp_path / "two", "twin", *settings, peers_of(one)) as two,
    ):
        assert "node.name" in refusal(two, "twin")
        assert "twin" in eventually(lambda: [line for line in one.log.splitlines() if "refused" in line], "logged")[0]
        assert one.sees() == {"twin": "self"}


def test_a_model_that_another_node_has_not_or_has_otherwise_is_refused_with_that_nodes_name(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "ours" / "absent")
    tiny_llama(tmp_path / "ours" / "other", seed=1)
    tiny_llama(tmp_path / "theirs" / "other", seed=2)
    settings = (
        "cluster.listen=127.0.0.1:0",
        "cluster.key=a shared secret",
        "roles.placement=even",
        "models.share=false",
    )
    with (
        node_process(tmp_path, "near", *settings, f'models.path=["{tmp_path / "ours"}"]') as near,
        node_process(tmp_path, "far", *settings, peers_of(near), f'models.path=["{tmp_path / "theirs"}"]') as far,
    ):
        eventually(lambda: (near.sees().get("far"), far.sees().get("near")) == ("up", "up"), "they see each other")
        for model, words in (("absent", "does not find it"), ("other", "has other files for other than near")):
            response = near.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1})
            assert response.status_code == 500
            error = response.json()["error"]
            assert error["code"] == "model_error"
            assert error["message"].startswith("node far ")
            assert words in error["message"]
        for node in (near, far):
            eventually(lambda node=node: node.get("status")["memory_reserved"] == 0, "nothing is held")  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
            assert node.get("ps")["models"] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_nodes_compute_what_mlx_lm_computes_in_every_type(
    three_nodes: dict[str, NodeProcess], tiny: Path, references: dict[str, Reference], dtype: str
) -> None:
    expected, driver = references[dtype], three_nodes[dtype]
    choice = complete(driver, tiny, "the quick brown fox", 24)
    assert sorted(driver.layers(str(tiny)).values()) == [(0, 1), (2, 3), (4, 4)]
    assert choice["logprobs"]["tokens"] == expected.texts
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs, abs=2e-2)
    driver.unload(str(tiny))


def test_three_nodes_that_are_asked_at_the_same_moment_place_a_model_once(
    three_nodes: dict[str, NodeProcess], tiny: Path
) -> None:
    nodes = list(three_nodes.values())

    def placed() -> int:
        return sum(node.log.count(f"placing {tiny}") for node in nodes)

    for _ in range(5):
        before = placed()
        with ThreadPoolExecutor(2 * len(nodes)) as pool:
            texts = {choice["text"] for choice in pool.map(lambda node: complete(node, tiny), 2 * nodes)}
        assert (len(texts), placed() - before) == (1, 1)
        nodes[0].unload(str(tiny))
        eventually(lambda: not any(node.layers(str(tiny)) for node in nodes), "it is unloaded everywhere")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of five layers, stored in bfloat16."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "five", layers=5, dtype="bfloat16")


@pytest.fixture(scope="module")
def references(tiny: Path) -> dict[str, Reference]:
    """What mlx-lm generates with the model in every type."""
    jobs = [{"text": "the quick brown fox", "dtype": dtype, "max_tokens": 24} for dtype in DTYPES]
    return dict(zip(DTYPES, ask_mlx_lm(tiny, *jobs), strict=True))


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three nodes, by the type that the models are computed in that each of them places."""
    folder = tmp_path_factory.mktemp("three")

    def settings(dtype: str) -> tuple[str, ...]:
        return (
            "cluster.listen=127.0.0.1:0",
            "cluster.key=a shared secret",
            "roles.placement=even",
            f"models.dtype={dtype}",
        )

    with (
        node_process(folder, "x", *settings("float32"), env=ONE_THREAD) as x,
        node_process(folder, "y", *settings("bfloat16"), peers_of(x), env=ONE_THREAD) as y,
        node_process(folder, "z", *settings("float16"), peers_of(x), env=ONE_THREAD) as z,
    ):
        nodes = {"float32": x, "bfloat16": y, "float16": z}
        eventually(
            lambda: all(list(node.sees().values()).count("up") == 2 for node in nodes.values()), "each sees the others"
        )
        yield nodes
