"""The Ollama frontend, driven by Ollama's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anyio
import httpx
import ollama
import pytest

from runtime.errors import CheckpointCorrupt, Overloaded
from runtime.spi import Chat, ChatMessage, Text
from tests.http.scripted import MODEL, ScriptedEngine, serving

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[ollama.AsyncClient]:
    async with serving(engine) as node, ollama.AsyncClient(host=node.url) as client:
        yield client


async def test_a_chat_answers_with_counts_and_nanoseconds(client: ollama.AsyncClient, engine: ScriptedEngine) -> None:
    answer = await client.chat(MODEL, MESSAGES, keep_alive="1h30m")
    assert (answer.message.role, answer.message.content) == ("assistant", ANSWER)
    assert (answer.model, answer.done, answer.done_reason) == (MODEL, True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (11, 7)
    assert (answer.total_duration, answer.load_duration) == (1_750_000_000, 250_000_000)
    assert (answer.prompt_eval_duration, answer.eval_duration) == (500_000_000, 1_000_000_000)
    assert answer.created_at is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(answer.created_at)).total_seconds() < 60
    request = engine.requests[0]
    assert request.prompt == Chat((ChatMessage("system", "Be brief."), ChatMessage("user", QUESTION)))
    assert (request.keep_alive, request.truncate, request.max_tokens) == (5400.0, True, None)


async def test_a_streamed_chat_is_lines_and_the_last_is_done(client: ollama.AsyncClient) -> None:
    lines = [line async for line in await client.chat(MODEL, MESSAGES, stream=True)]
    assert "".join(line.message.content or "" for line in lines) == ANSWER
    assert [line.done for line in lines] == [False] * 7 + [True]
    assert (lines[-1].done_reason, lines[-1].eval_count) == ("stop", 7)
    assert lines[0].eval_count is None


async def test_streaming_is_the_default(engine: ScriptedEngine) -> None:
    async with serving(engine) as node, httpx.AsyncClient() as http:
        response = await http.post(f"{node.url}/api/generate", json={"model": MODEL, "prompt": "hi"})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert len(response.text.splitlines()) == 8


async def test_a_prompt_goes_into_the_chat_template_unless_it_is_raw(
    client: ollama.AsyncClient, engine: ScriptedEngine
) -> None:
    answer = await client.generate(MODEL, QUESTION, system="Be brief.")
    assert (answer.response, answer.done_reason) == (ANSWER, "stop")
    await client.generate(MODEL, QUESTION, raw=True)
    assert [request.prompt for request in engine.requests] == [
        Chat((ChatMessage("system", "Be brief."), ChatMessage("user", QUESTION))),
        Text(QUESTION),
    ]


async def test_ollamas_defaults_are_kept(client: ollama.AsyncClient, engine: ScriptedEngine) -> None:
    await client.generate(MODEL, "hi")
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.9, 0.0)
    assert (sampling.repetition_penalty, sampling.penalty_context, sampling.seed) == (1.1, 64, None)


async def test_every_option_reaches_the_engine(client: ollama.AsyncClient, engine: ScriptedEngine) -> None:
    options = {
        "temperature": 0, "top_k": 5.0, "top_p": 0.5, "min_p": 0.1, "seed": 7, "num_predict": 3, "stop": ["\n"],
        "repeat_penalty": 1.3, "repeat_last_n": 32, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_ctx": 4096, "num_gpu": 1, "num_thread": 2, "use_mmap": True, "mirostat": 0, "typical_p": 1.0,
    }  # fmt: skip
    answer = await client.generate(MODEL, "hi", options=options)
    assert (answer.response, answer.done_reason) == ("The capital of", "length")
    request = engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 5, 0.5, 0.1)
    assert (sampling.repetition_penalty, sampling.penalty_context, sampling.seed) == (1.3, 32, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.25)
    assert (request.max_tokens, request.stop) == (3, ("\n",))


async def test_options_have_values_that_mean_off(client: ollama.AsyncClient, engine: ScriptedEngine) -> None:
    await client.generate(MODEL, "hi", options={"repeat_last_n": 0, "presence_penalty": 1.0, "seed": -1, "top_k": -1})
    await client.generate(MODEL, "hi", options={"repeat_last_n": -1, "num_predict": -2})
    off, whole = (request.sampling for request in engine.requests)
    assert (off.repetition_penalty, off.presence_penalty, off.seed, off.top_k) == (1.0, 0.0, None, 0)
    assert (whole.repetition_penalty, whole.penalty_context > 8192) == (1.1, True)
    assert engine.requests[1].max_tokens is None


async def test_no_prompt_only_loads_and_keep_alive_zero_unloads(
    client: ollama.AsyncClient, engine: ScriptedEngine
) -> None:
    assert (await client.generate(MODEL, keep_alive=-1)).done_reason == "load"
    assert (await client.chat(MODEL, keep_alive="5m")).done_reason == "load"
    assert (await client.generate(MODEL, "", keep_alive=0)).done_reason == "unload"
    assert (await client.chat(MODEL, [], keep_alive="0s")).done_reason == "unload"
    assert engine.calls == [("load", MODEL, -1.0), ("load", MODEL, 300.0), *([("unload", MODEL, None)] * 2)]
    assert engine.requests == []


async def test_tokens_are_scored(client: ollama.AsyncClient) -> None:
    answer = await client.generate(MODEL, "hi", logprobs=True, top_logprobs=2, options={"num_predict": 2})
    assert answer.logprobs is not None
    assert [(each.token, each.logprob) for each in answer.logprobs] == [("The", -0.5), (" capital", -0.5)]
    assert answer.logprobs[0].top_logprobs is not None
    assert [(top.token, top.logprob) for top in answer.logprobs[0].top_logprobs] == [("The", -0.5), ("\ufffd", -9999.0)]
    lines = [line async for line in await client.generate(MODEL, "hi", logprobs=True, stream=True)]
    assert [len(line.logprobs or []) for line in lines] == [1] * 7 + [0]


async def test_models_are_listed_with_tags_and_answer_to_them(
    client: ollama.AsyncClient, engine: ScriptedEngine
) -> None:
    models = (await client.list()).models
    assert [model.model for model in models] == ["acme/tiny-llama:latest", MODEL]
    assert models[1].size == 144_811_232
    assert models[1].digest == "ab" * 32
    assert models[1].modified_at is not None
    assert models[1].details is not None
    assert (models[1].details.format, models[1].details.family) == ("safetensors", "llama")
    assert (models[1].details.parameter_size, models[1].details.quantization_level) == ("134.5M", "F16")
    answer = await client.generate("acme/tiny-llama:latest", "hi")
    assert (answer.model, engine.requests[0].model) == ("acme/tiny-llama:latest", "acme/tiny-llama")


async def test_a_model_that_is_really_called_latest_keeps_its_name() -> None:
    engine = ScriptedEngine(names=("tiny", "tiny:latest"))
    async with serving(engine) as node, ollama.AsyncClient(host=node.url) as client:
        await client.generate("tiny:latest", "hi")
    assert engine.requests[0].model == "tiny:latest"


async def test_a_model_is_shown_with_the_keys_of_gguf(client: ollama.AsyncClient) -> None:
    shown = await client.show(MODEL)
    assert shown.template == "{{ messages }}"
    assert shown.capabilities == ["completion"]
    assert shown.license == "apache-2.0"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["general.parameter_count"] == 134_515_008
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["llama.attention.head_count"] == 9
    with pytest.raises(ollama.ResponseError) as caught:
        await client.show("smolm2")
    assert (caught.value.status_code, "did you mean" in caught.value.error) == (404, True)


async def test_served_models_say_when_they_expire(client: ollama.AsyncClient) -> None:
    served = (await client.ps()).models[0]
    assert (served.model, served.size, served.size_vram, served.context_length) == (MODEL, 3000, 3000, 8192)
    assert served.expires_at == datetime.fromtimestamp(1_763_900_300, UTC)


async def test_the_root_and_the_version_answer_get_and_head(engine: ScriptedEngine) -> None:
    async with serving(engine) as node, httpx.AsyncClient(base_url=node.url) as http:
        assert (await http.get("/")).text == "Ollama is running"
        assert (await http.head("/")).status_code == 200
        assert (await http.get("/api/version")).json()["version"].count(".") == 2
        assert (await http.head("/api/tags")).status_code == 200


async def test_a_fault_before_and_in_a_stream(engine: ScriptedEngine) -> None:
    engine.fault = Overloaded("come back later")
    async with serving(engine) as node, ollama.AsyncClient(host=node.url) as client:
        with pytest.raises(ollama.ResponseError) as before:
            await client.chat(MODEL, MESSAGES)
        assert (before.value.status_code, before.value.error) == (503, "come back later")
        engine.fault, engine.fault_after = CheckpointCorrupt("layer 3 is damaged"), 2
        stream = aiter(await client.chat(MODEL, MESSAGES, stream=True))
        assert [(await anext(stream)).message.content for _ in range(2)] == ["The", " capital"]
        with pytest.raises(ollama.ResponseError, match="layer 3 is damaged"):
            await anext(stream)


async def test_leaving_a_stream_closes_the_generation() -> None:
    engine = ScriptedEngine(pause_after=2)
    async with serving(engine) as node, httpx.AsyncClient() as http:
        with anyio.fail_after(10):
            async with http.stream("POST", f"{node.url}/api/generate", json={"model": MODEL, "prompt": "hi"}) as stream:
                async for _ in stream.aiter_lines():
                    break
            await engine.closed.wait()


async def test_giving_up_on_a_whole_answer_closes_the_generation() -> None:
    engine = ScriptedEngine(pause_after=0)
    async with serving(engine) as node, ollama.AsyncClient(host=node.url) as client:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.generate(MODEL, "hi"))
                await engine.paused.wait()
                tasks.cancel_scope.cancel()
            await engine.closed.wait()
