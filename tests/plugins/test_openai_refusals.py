"""What the OpenAI frontend refuses, and in which words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from runtime.errors import InvalidRequest
from runtime.spi.body import read_body
from runtime_openai.frontend import OpenAIFrontend
from runtime_openai.schema import ChatBody
from tests.http.scripted import MODEL, ScriptedEngine, serving

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine) as node, httpx.AsyncClient(base_url=f"{node.url}/v1") as client:
        yield client


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"messages": None}, "messages", "should be a valid array"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role", "'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a string or a list"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content", '"type"'),
        ({"messages": [{"role": "user", "content": "x", "txt": 1}]}, "messages[0].txt", "unknown field"),
        ({"model": ""}, "model", "empty"),
        ({"temperature": "hot"}, "temperature", 'and is "hot"'),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "less than or equal to 16"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stop": [1]}, "stop", "list of strings"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"stop": ["x"] * 17}, "stop", "17 entries"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"logit_bias": {"hello": 1}}, "logit_bias", "not a token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias", "object"),
        ({"top_logprobs": 3}, "top_logprobs", '"logprobs": true'),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", '"stream": true'),
        ({"temprature": 1}, "temprature", 'did you mean "temperature"?'),
        ({"max_token": 1}, "max_token", 'did you mean "max_tokens"?'),
    ],
)
async def test_a_malformed_chat_names_the_field(
    client: httpx.AsyncClient, engine: ScriptedEngine, extra: dict[str, Any], param: str, words: str
) -> None:
    response = await client.post("/chat/completions", json={"model": MODEL, "messages": MESSAGES, **extra})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
        ),
    ],
)
async def test_what_is_not_implemented_is_refused_by_name(
    client: httpx.AsyncClient, engine: ScriptedEngine, extra: dict[str, Any], param: str
) -> None:
    response = await client.post("/chat/completions", json={"model": MODEL, "messages": MESSAGES, **extra})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert engine.requests == []


async def test_fields_that_ask_for_nothing_are_accepted(client: httpx.AsyncClient) -> None:
    unused: dict[str, Any] = {"refusal": None, "tool_calls": None, "annotations": [], "audio": None}
    body = {
        "model": MODEL,
        "messages": [*MESSAGES, {"role": "assistant", "content": "x", **unused}, *MESSAGES],
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "temperature": None,
        "stop": None,
        "logit_bias": None,
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "user": "u",
        "top_k": -1,
    }
    assert (await client.post("/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_request"),
        ({"prompt": []}, "prompt", "invalid_request"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_request"),
        ({"prompt": [-1]}, "prompt", "invalid_request"),
        ({"prompt": [True]}, "prompt", "invalid_request"),
        ({"prompt": [[1], []]}, "prompt", "invalid_request"),
        ({"prompt": {"text": "a"}}, "prompt", "invalid_request"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt", "invalid_request"),
        ({"logprobs": True}, "logprobs", "invalid_request"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": [1, 2], "echo": True}, "echo", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"messages": MESSAGES}, "messages", "invalid_request"),
    ],
)
async def test_a_malformed_completion_names_the_field(
    client: httpx.AsyncClient, extra: dict[str, Any], param: str, code: str
) -> None:
    response = await client.post("/completions", json={"model": MODEL, "prompt": "hi", **extra})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model"', b"\xff\xfe", b"model=x", b'{"model": "\\ud800"}'])
async def test_a_body_that_is_no_json_object_is_a_clear_400(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/chat/completions", content=body)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


async def test_the_body_is_read_whatever_its_content_type_says(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/completions",
        content=f'{{"model": "{MODEL}", "prompt": "hi"}}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 200


def test_the_greeting_carries_the_key_only_where_one_is_needed() -> None:
    frontend = OpenAIFrontend()
    assert "RUNTIME_API_KEY" in frontend.greeting("http://h:1", MODEL, True)
    plain = frontend.greeting("http://h:1", "it's", False)
    assert "RUNTIME_API_KEY" not in plain
    assert plain.startswith("curl http://h:1/v1/chat/completions ")
    assert r"it'\''s" in plain


def test_lists_end_somewhere_and_the_first_mistake_in_one_is_enough() -> None:
    with pytest.raises(InvalidRequest, match=r'^"messages" has more than 4096 entries$'):
        read_body(
            ChatBody, b'{"model":"m","messages":[' + b'{"role":"user","content":""},' * 4096 + b'{"role":"user"}]}'
        )
    with pytest.raises(InvalidRequest, match=r"^\"messages\[0\]\" "):
        read_body(ChatBody, b'{"model":"m","messages":[' + b"1," * 2000 + b"1]}")


def test_a_model_has_no_name_of_a_page() -> None:
    with pytest.raises(InvalidRequest, match="512 characters"):
        read_body(ChatBody, b'{"model":"' + b"m" * 513 + b'","messages":[{"role":"user","content":""}]}')
