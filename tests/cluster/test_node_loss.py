"""A node dies without a word while a generation depends on it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of
from tests.conftest import MODEL, ONE_THREAD

pytestmark = pytest.mark.slow

SETTINGS = (
    "cluster.listen=127.0.0.1:0",
    "cluster.key=a key for losses",
    "models.context=2048",
    "roles.placement=even",
)
SILENT_SECONDS = 20.0
STORY: dict[str, object] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}
STORY["logit_bias"] = {"2": -100}  # the end of a turn


@contextmanager
def story(node: NodeProcess) -> Iterator[Iterator[str]]:
    """Hold a streamed generation, once it has begun: its lines, in which the first text is still to come."""
    with (
        httpx.Client(trust_env=False, timeout=SILENT_SECONDS) as client,
        client.stream("POST", f"{node.url}/v1/completions", json={**STORY, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        first = next(lines)
        assert json.loads(first.removeprefix("data: "))["choices"]
        yield itertools.chain((first,), lines)


def text_of(lines: Iterator[str]) -> str:
    """Read a stream to its end, and return its text."""
    told = [line for line in lines if line and not line.startswith(":")]
    assert told[-1] == "data: [DONE]", told[-1]
    return "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in told[:-1])


def whole_story(node: NodeProcess) -> str:
    response = node.post("/v1/completions", STORY)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def complete(node: NodeProcess) -> str:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    response = node.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def test_a_lost_node_is_replaced_by_the_survivor_within_a_generation_and_used_again_when_it_is_back(
    nodes_folder: Path,
) -> None:
    def start(name: str, *peers: NodeProcess) -> NodeProcess:
        return stack.enter_context(node_process(nodes_folder, name, *SETTINGS, peers_of(*peers), env=ONE_THREAD))

    def together(one: NodeProcess, other: NodeProcess) -> bool:
        return one.sees().get(other.name) == "up" and other.sees().get(one.name) == "up"

    with ExitStack() as stack:
        first = start("first")
        last = start("last", first)
        eventually(lambda: together(first, last), "the nodes see each other")
        first.load(MODEL)
        text, whole = complete(first), whole_story(first)
        assert first.layers(MODEL) == {"first": (0, 14), "last": (15, 29)}

        # The node with the last layers.
        with story(first) as lines:
            last.kill()
            assert text_of(lines) == whole
        assert first.sees() == {"first": "self", "last": "down"}
        assert complete(first) == text
        assert first.layers(MODEL) == {"first": (0, 29)}

        # It comes back, at another address, and has a part in what is placed from then on.
        last = start("last", first)
        eventually(lambda: together(first, last), "the node is back")
        assert complete(last) == text
        assert last.layers(MODEL) == {"first": (0, 29)}, "what is served stays where it is"
        first.unload(MODEL)
        first.load(MODEL)
        assert first.layers(MODEL) == {"first": (0, 14), "last": (15, 29)}
        assert complete(last) == text

        # The node with the first layers, which holds the model's driver too, while the other one has the client.
        with story(last) as lines:
            first.kill()
            assert text_of(lines) == whole
        assert complete(last) == text
        assert last.layers(MODEL) == {"last": (0, 29)}
