"""What any client relies on: a node that goes on serving, whatever is asked of it, and however the asking ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process
from tests.conftest import MODEL

pytestmark = pytest.mark.slow

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "What is two plus two?",
    "Write a story about a fox.",
)


def ask(node: NodeProcess, prompt: str, max_tokens: int = 8) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    response = node.post("/v1/chat/completions", {**body, "max_tokens": max_tokens})
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def long_story(stream: bool) -> dict[str, object]:
    """A request that would run for minutes: the end-of-text token is banned."""
    return {
        "model": MODEL,
        "prompt": "Once upon a time",
        "max_tokens": 2000,
        "logit_bias": {"2": -100},
        "stream": stream,
    }


@pytest.mark.parametrize("line", [0, 1], ids=["openai", "ollama"])
def test_the_printed_curl_lines_answer_with_paris(node: NodeProcess, line: int) -> None:
    lines = [each for each in node.output.splitlines() if each.startswith("curl ")]
    assert len(lines) == 2
    done = subprocess.run(["sh", "-c", lines[line]], capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    message = answer["message"] if "message" in answer else answer["choices"][0]["message"]
    assert "Paris" in message["content"]


def test_requests_at_the_same_moment_get_the_texts_they_get_alone(node: NodeProcess) -> None:
    alone = [ask(node, question, max_tokens=5) for question in QUESTIONS]
    with ThreadPoolExecutor(2 * len(QUESTIONS)) as pool:
        together = list(pool.map(lambda question: ask(node, question, max_tokens=5), 2 * QUESTIONS))
    assert together == 2 * alone
    assert len(set(alone)) == len(QUESTIONS)


def test_a_client_that_hangs_up_on_a_stream_frees_its_place(node: NodeProcess) -> None:
    with httpx.Client(trust_env=False, timeout=60) as client:
        with client.stream("POST", f"{node.url}/v1/completions", json=long_story(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            assert node.active() == 1
        eventually(lambda: node.active() == 0, "the generation is cancelled")
    assert "Paris" in ask(node, "What is the capital of France?")


def test_a_client_that_hangs_up_while_it_waits_frees_its_place(node: NodeProcess) -> None:
    body = json.dumps(long_story(stream=False)).encode()
    url = httpx.URL(node.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        eventually(lambda: node.active() == 1, "the generation runs")
    eventually(lambda: node.active() == 0, "the generation is cancelled")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/api/show", "/runtime/v1/load"]
)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 3}', b'{"model": "' + 1000 * b"["])
def test_a_body_that_cannot_be_read_is_refused_in_the_dialect(node: NodeProcess, path: str, body: bytes) -> None:
    response = node.post(path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert isinstance(error if path.startswith("/api") else error["message"], str)
    assert "Traceback" not in response.text


def test_an_unknown_model_and_path_are_refused_in_the_kernels_dialect(node: NodeProcess) -> None:
    response = node.post("/runtime/v1/load", {"model": "smollm2"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert "did you mean smollm2:135m?" in error["message"]
    assert node.post("/runtime/v1/nothing", {}).status_code == 404


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "config"])
def test_a_damaged_model_is_refused_in_every_dialect_and_the_node_goes_on(
    node: NodeProcess, tmp_path: Path, damage: str
) -> None:
    model = tiny_llama(tmp_path / "damaged")
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(content[: len(content) // 2])
        case "header":
            weights.write_bytes(content[:8] + b"x" * 100 + content[108:])
        case "empty":
            weights.write_bytes(b"")
        case "config":
            (model / "config.json").write_text("{")
    chat = {"model": str(model), "messages": [{"role": "user", "content": "x"}]}
    answers = [
        node.post("/v1/chat/completions", chat),
        node.post("/api/chat", chat | {"stream": False}),
        node.post("/runtime/v1/load", {"model": str(model)}),
    ]
    for answer in answers:
        assert answer.status_code == 500
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        assert ("config.json" if damage == "config" else "model.safetensors") in message
    assert answers[0].json()["error"]["code"] == "checkpoint_corrupt"
    assert "Paris" in ask(node, "What is the capital of France?")


def test_generations_are_counted_in_the_metrics(node: NodeProcess) -> None:
    def count(metric: str) -> float:
        with httpx.Client(trust_env=False) as client:
            text = client.get(f"{node.url}/metrics").text
        found = re.search(rf"^runtime_{metric} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    ended = f'requests_total{{model="{MODEL}",reason="length"}}'
    tokens = f'completion_tokens_total{{model="{MODEL}"}}'
    before = count(ended), count(tokens)
    ask(node, "Write a story about a fox.", max_tokens=2)
    assert (count(ended), count(tokens)) == (before[0] + 1, before[1] + 2)
    assert count(f'loaded_layers{{model="{MODEL}"}}') == 30


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs_and_what_there_is(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "big", hidden=256, layers=8)
    with node_process(tmp_path, "full", "models.memory_reserve=1000TB") as node:
        chat = {"model": str(model), "messages": [{"role": "user", "content": "x"}]}
        for path in ("/v1/chat/completions", "/api/chat"):
            response = node.post(path, chat | {"stream": False})
            assert response.status_code == 503
            error = response.json()["error"]
            message = error if isinstance(error, str) else error["message"]
            for word in ("does not fit", "layers 0-7 of 8", "weights", "KV cache", "grantable", "available", "reserve"):
                assert word in message, message
            assert "What would help: a models.memory_reserve of at most" in message
        assert node.get("ps")["models"] == []
        assert node.get("status")["memory_reserved"] == 0
