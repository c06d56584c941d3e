"""Ollama's own client against a real node with the embedded model."""

from __future__ import annotations

import time
from pathlib import Path

import ollama
import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually
from tests.conftest import CAPITAL, MODEL, STORY

pytestmark = pytest.mark.slow

GREEDY = {"temperature": 0, "num_predict": 16}


def chat(client: ollama.Client, prompt: str, **options: object) -> str:
    response = client.chat(MODEL, [{"role": "user", "content": prompt}], options=GREEDY | options)
    assert response.message.content is not None
    return response.message.content


def test_chat_and_generate_answer_with_paris(ollama_client: ollama.Client) -> None:
    chatted = chat(ollama_client, CAPITAL)
    generated = ollama_client.generate(MODEL, CAPITAL, options=GREEDY)
    assert "Paris" in chatted
    assert generated.response == chatted, "a prompt is put into the chat template"
    assert (generated.done, generated.done_reason) == (True, "stop")
    assert generated.prompt_eval_count == 37
    assert generated.eval_count == 8
    assert generated.total_duration is not None
    assert generated.total_duration > 1_000_000, "nanoseconds"


def test_streamed_pieces_join_to_the_whole_text(ollama_client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 8}
    parts = list(ollama_client.generate(MODEL, STORY, options=options, stream=True))
    whole = ollama_client.generate(MODEL, STORY, options=options)
    assert "".join(part.response or "" for part in parts) == whole.response
    assert len(parts) > 5
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 8)


def test_a_seed_decides_the_text(ollama_client: ollama.Client) -> None:
    first, same, other = (
        chat(ollama_client, "Tell me a joke.", temperature=1, seed=seed, num_predict=5) for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_a_stop_text_ends_an_answer_before_itself(ollama_client: ollama.Client) -> None:
    whole = chat(ollama_client, CAPITAL)
    assert chat(ollama_client, CAPITAL, stop=[" of France"]) == whole.partition(" of France")[0] != whole


def test_the_model_is_listed_and_shown(ollama_client: ollama.Client) -> None:
    assert MODEL in [model.model for model in ollama_client.list().models]
    shown = ollama_client.show(MODEL)
    assert shown.details is not None
    assert shown.details.family == "llama"


def test_an_unknown_model_is_refused_with_the_nearest_name(ollama_client: ollama.Client) -> None:
    for call in (
        lambda: ollama_client.generate("smolm2:135m", "hello"),
        lambda: ollama_client.chat("smolm2:135m", [{"role": "user", "content": "hello"}]),
        lambda: ollama_client.show("smolm2:135m"),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert caught.value.status_code == 404
        assert "did you mean smollm2:135m?" in caught.value.error


def test_a_prompt_over_the_context_loses_its_beginning_unless_that_is_refused(
    ollama_client: ollama.Client, node: NodeProcess, tmp_path: Path
) -> None:
    model = str(tiny_llama(tmp_path / "narrow", context=256))
    prompt = 400 * "x"
    generated = ollama_client.generate(model, prompt, raw=True, options={"num_predict": 2, "temperature": 0})
    assert generated.prompt_eval_count == 128, "half of the context is left for an answer"
    response = node.post("/api/generate", {"model": model, "prompt": prompt, "raw": True, "truncate": False})
    assert response.status_code == 400
    assert "400 tokens" in response.json()["error"]
    assert "256" in response.json()["error"]
    node.unload(model)


def test_keep_alive_decides_how_long_a_model_stays(ollama_client: ollama.Client, tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "brief"))

    def expires() -> float | None:
        """In minutes from now, None where the model is not served."""
        times = [each.expires_at for each in ollama_client.ps().models if each.model == f"{model}:latest"]
        return None if not times or times[0] is None else (times[0].timestamp() - time.time()) / 60

    ollama_client.generate(model, keep_alive="10m")
    assert expires() == pytest.approx(10, abs=0.5), "without a prompt the model is loaded"
    ollama_client.generate(model, keep_alive=0)
    assert expires() is None, "and let go of"

    ollama_client.generate(model, "x", options={"num_predict": 2}, keep_alive="20m")
    assert expires() == pytest.approx(20, abs=0.5)
    ollama_client.generate(model, "x", options={"num_predict": 2}, keep_alive=0)
    eventually(lambda: expires() is None, "the model is let go of after its answer")
