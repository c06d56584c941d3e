"""The OpenAI frontend, driven by OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx
import openai
import pytest

from runtime.errors import CheckpointCorrupt, ContextExceeded, Overloaded
from runtime.spi import Chat, ChatMessage, FinishReason, Text, Tokens
from tests.http.scripted import MODEL, ScriptedEngine, internal_bug, serving

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(engine) as node, connected(node.url) as client:
        yield client


def connected(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


async def test_a_chat_answers_with_its_reason_and_usage(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
    )
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 7, 18)
    request = engine.requests[0]
    assert request.prompt == Chat((ChatMessage("system", "Be brief."), ChatMessage("user", QUESTION)))
    assert (request.sampling.temperature, request.sampling.top_p, request.truncate) == (1.0, 1.0, False)


async def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 8 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_counts_its_tokens_when_asked(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
    )
    last = [chunk async for chunk in stream][-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 18


async def test_a_limit_of_tokens_is_the_reason_length(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=9, max_completion_tokens=2
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The capital", "length")
    assert engine.requests[0].max_tokens == 2


async def test_every_sampling_setting_reaches_the_engine(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]}],
        temperature=0,
        top_p=0.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"42": -100, "7": 3},
        seed=-1,
        stop="\n",
        user="someone",
        metadata={"trace": "1"},
        store=False,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2},
    )
    request = engine.requests[0]
    sampling = request.sampling
    assert request.prompt == Chat((ChatMessage("user", "What is it?"),))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.5, 1.2)
    assert sampling.penalty_context > 8192
    assert not sampling.penalize_prompt
    assert sampling.logit_bias == {42: -100.0, 7: 3.0}
    # MLX takes no negative seeds.
    assert (sampling.seed, request.stop) == (2**63 - 1, ("\n",))


async def test_several_choices_have_seeds_of_their_own(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], n=3, seed=2**63 - 2
    )
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(i, ANSWER) for i in range(3)]
    assert [request.sampling.seed for request in engine.requests] == [2**63 - 2, 2**63 - 1, 0]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 21)


async def test_several_choices_are_streamed_by_index(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], n=2, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ANSWER, 1: ANSWER}


async def test_a_chat_scores_its_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], logprobs=True, top_logprobs=2, max_tokens=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    token = logprobs.content[0]
    assert (token.token, token.logprob, token.bytes) == ("The", -0.5, list(b"The"))
    # Half a character has no text of its own, and an impossible token no finite probability.
    assert [(top.token, top.logprob, top.bytes) for top in token.top_logprobs] == [
        ("The", -0.5, list(b"The")),
        ("\ufffd", -9999.0, [0xF0, 0x9F]),
    ]


async def test_a_streamed_chat_scores_each_chunk(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], logprobs=True, stream=True
    )
    tokens = []
    async for chunk in stream:
        scored = chunk.choices[0].logprobs
        tokens += [each.token for each in (scored.content or [])] if scored else []
    assert "".join(tokens) == ANSWER


async def test_a_completion_continues_text(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.completions.create(model=MODEL, prompt="Once", logprobs=1, max_tokens=2, echo=False)
    assert answer.object == "text_completion"
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("The capital", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["The", " capital"]
    assert choice.logprobs.token_logprobs == [-0.5, -0.5]
    assert choice.logprobs.top_logprobs == [{"The": -0.5}, {" capital": -0.5}]
    assert choice.logprobs.text_offset == [0, 3]
    assert engine.requests[0].prompt == Text("Once")


async def test_a_completion_has_openais_own_limit_unless_told_otherwise(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    await client.completions.create(model=MODEL, prompt="Once")
    assert engine.requests[0].max_tokens == 16


async def test_prompts_are_text_or_tokens_one_or_many(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (22, 28)
    await client.completions.create(model=MODEL, prompt=[1, 2])
    await client.completions.create(model=MODEL, prompt=[[3], [4, 5]])
    assert [request.prompt for request in engine.requests] == [
        *([Text("a")] * 2),
        *([Text("b")] * 2),
        Tokens((1, 2)),
        Tokens((3,)),
        Tokens((4, 5)),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_echoes_its_prompt(client: openai.AsyncOpenAI, stream: bool) -> None:
    if stream:
        chunks = await client.completions.create(model=MODEL, prompt="So: ", echo=True, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in chunks])
    else:
        text = (await client.completions.create(model=MODEL, prompt="So: ", echo=True)).choices[0].text
    assert text == "So: " + ANSWER


async def test_models_are_listed_and_found_by_names_with_slashes(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["acme/tiny-llama", MODEL]
    found = await client.models.retrieve("acme/tiny-llama")
    assert (found.id, found.owned_by, found.created) == ("acme/tiny-llama", "gguf", 1763900000)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("acme/tiny-lama")
    assert caught.value.code == "model_not_found"


async def test_faults_have_openais_status_and_words(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="smolm2", messages=[{"role": "user", "content": "hi"}])
    assert (missing.value.code, missing.value.type, missing.value.param) == (
        "model_not_found",
        "invalid_request_error",
        "model",
    )
    engine.fault = ContextExceeded("the prompt is too long")
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert long.value.code == "context_length_exceeded"
    engine.fault = Overloaded("come back later")
    with pytest.raises(openai.InternalServerError) as busy:
        await client.completions.create(model=MODEL, prompt="hi")
    assert (busy.value.status_code, busy.value.type) == (503, "server_error")


async def test_a_fault_in_a_stream_is_told_in_the_stream() -> None:
    engine = ScriptedEngine(fault=CheckpointCorrupt("layer 3 is damaged"), fault_after=2)
    async with serving(engine) as node, connected(node.url) as client:
        stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
        assert [(await anext(stream)).choices[0].text for _ in range(2)] == ["The", " capital"]
        with pytest.raises(openai.APIError, match="layer 3 is damaged"):
            await anext(stream)


async def test_a_stream_that_waits_has_comments_that_clients_skip() -> None:
    engine = ScriptedEngine(pause_after=2)
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    async with serving(engine) as node:
        engine.resume.set()
        async with httpx.AsyncClient(trust_env=False) as http:
            response = await http.post(f"{node.url}/v1/completions", json=body)
        assert response.text.count(": keep-alive\n\n") == 1
        async with connected(node.url) as client:
            stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "".join(engine.words)


async def test_a_bug_in_a_stream_ends_it_without_details() -> None:
    engine = ScriptedEngine(fault=internal_bug(), fault_after=1)
    async with serving(engine) as node, connected(node.url) as client:
        with pytest.raises(openai.APIError) as caught:
            async for _ in await client.completions.create(model=MODEL, prompt="hi", stream=True, n=2):
                pass
        assert "secret" not in str(caught.value.body)


async def test_a_generation_that_the_node_cancelled_is_no_answer() -> None:
    engine = ScriptedEngine(reason=FinishReason.CANCELLED)
    async with serving(engine) as node, connected(node.url) as client:
        with pytest.raises(openai.InternalServerError, match="cancelled before it was complete"):
            await client.completions.create(model=MODEL, prompt="hi")


@pytest.mark.parametrize("choices", [1, 2])
async def test_leaving_a_stream_closes_the_generation(choices: int) -> None:
    engine = ScriptedEngine(pause_after=2)
    async with serving(engine) as node, connected(node.url) as client:
        with anyio.fail_after(10):
            async with await client.completions.create(model=MODEL, prompt="hi", stream=True, n=choices) as stream:
                async for _ in stream:
                    break
            await engine.closed.wait()


async def test_giving_up_on_a_whole_answer_closes_the_generation() -> None:
    engine = ScriptedEngine(pause_after=0)
    async with serving(engine) as node, connected(node.url) as client:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.completions.create(model=MODEL, prompt="hi"))
                await engine.paused.wait()
                tasks.cancel_scope.cancel()
            await engine.closed.wait()
