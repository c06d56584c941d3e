"""What the Ollama frontend refuses, and its forms of time and size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest
from runtime.spi.body import read_body
from runtime_ollama.cards import parameter_size
from runtime_ollama.duration import expiry, parse_duration, rfc3339
from runtime_ollama.frontend import OllamaFrontend
from runtime_ollama.names import tagged
from runtime_ollama.schema import ChatBody
from tests.http.scripted import MODEL, ScriptedEngine, serving

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine) as node, httpx.AsyncClient(base_url=node.url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "extra", "words"),
    [
        ("chat", {"messages": 3}, '"messages" should be a valid array'),
        ("chat", {"messages": [{"role": "wizard"}]}, "'assistant'"),
        ("chat", {"mesages": []}, 'did you mean "messages"?'),
        ("chat", {"tools": [{}]}, '"tools" is not supported'),
        ("chat", {"think": True}, '"think" is not supported'),
        ("chat", {"format": "json"}, '"format" is not supported'),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, 'role "tool"'),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("generate", {"suffix": "end"}, '"suffix" is not supported'),
        ("generate", {"template": "{{ .Prompt }}"}, '"template" is not supported'),
        ("generate", {"context": [1, 2]}, '"context" is not supported'),
        ("generate", {"images": ["aGk="]}, '"images" is not supported'),
        ("generate", {"raw": True, "system": "x"}, '"system" has no place in a raw prompt'),
        ("generate", {"shift": True}, '"shift" is not supported'),
        ("generate", {"top_logprobs": 2}, 'needs "logprobs": true'),
        ("generate", {"stream": "no"}, '"stream" should be a valid boolean'),
        ("generate", {"keep_alive": "soon"}, '"keep_alive" must be seconds, or a duration'),
        ("generate", {"keep_alive": "9" * 400 + "h"}, "longer than 292 years"),
        ("generate", {"keep_alive": True}, '"keep_alive" must be seconds, or a duration'),
        ("generate", {"options": {"temprature": 1}}, 'did you mean "options.temperature"?'),
        ("generate", {"options": {"temperature": "hot"}}, '"options.temperature" should be a valid number'),
        ("generate", {"options": {"num_predict": -3}}, '"options.num_predict" should be greater than or equal to -2'),
        ("generate", {"options": {"mirostat": 2}}, '"options.mirostat" is not supported'),
        ("generate", {"options": {"typical_p": 0.5}}, '"options.typical_p" is not supported'),
        ("generate", {"options": {"num_ctx": 100_000}}, "ends at 8192 tokens"),
        ("generate", {"model": ""}, '"model" is empty'),
    ],
)
async def test_a_request_that_cannot_be_met_names_the_field(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str, extra: dict[str, Any], words: str
) -> None:
    base: dict[str, Any] = {"prompt": "hi"} if path == "generate" else {"messages": MESSAGES}
    response = await client.post(f"/api/{path}", json={"model": MODEL, **base, **extra})
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert engine.requests == []


async def test_fields_that_ask_for_nothing_are_accepted(client: httpx.AsyncClient) -> None:
    nothing = {"suffix": "", "template": "", "context": [], "images": [], "format": "", "think": False, "system": ""}
    response = await client.post("/api/generate", json={"model": MODEL, "prompt": "hi", "stream": False, **nothing})
    assert response.status_code == 200


async def test_a_missing_model_is_a_404_in_ollamas_words(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/chat", json={"model": "smolm2", "messages": MESSAGES})
    assert response.status_code == 404
    assert response.json() == {"error": f"there is no model 'smolm2'; did you mean '{MODEL}'?"}
    unknown = await client.post(
        "/api/generate", json={"model": "smolm2", "prompt": "hi", "options": {"num_ctx": 512}, "stream": False}
    )
    assert unknown.status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"model=x"])
async def test_a_body_that_is_no_json_object_is_a_clear_400(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/api/chat", content=body)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]


async def test_older_clients_say_name(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/show", json={"name": MODEL})).status_code == 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("-1", -1), ("-1m", -60), ("0", 0), ("90", 90), ("1.5h", 5400), ("250ms", 0.25),
     (".5s", 0.5), ("+2s", 2), ("1h0m0.5s", 3600.5)],
)  # fmt: skip
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5 m", "five", "5d", "1h30", "--1s", "1e3s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_the_sum_of_its_terms(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


def test_times_keep_their_nanoseconds() -> None:
    assert rfc3339(1_763_900_000_000_000_001) == "2025-11-23T12:13:20.000000001Z"
    assert expiry(None).startswith("2318-")


@pytest.mark.parametrize(
    ("count", "text"),
    [(134_515_008, "134.5M"), (7_000_000_000, "7B"), (1_100_000_000_000, "1.1T"), (12, "12"), (1500, "1.5K")],
)
def test_sizes_are_written_as_people_say_them(count: int, text: str) -> None:
    assert parameter_size(count) == text


def test_only_the_last_part_of_a_name_has_a_tag() -> None:
    assert tagged("smollm2:135m") == "smollm2:135m"
    assert tagged("host:80/acme/tiny") == "host:80/acme/tiny:latest"


def test_the_greeting_carries_the_key_only_where_one_is_needed() -> None:
    frontend = OllamaFrontend()
    assert "RUNTIME_API_KEY" in frontend.greeting("http://h:1", MODEL, True)
    assert frontend.greeting("http://h:1", MODEL, False).startswith("curl http://h:1/api/chat -d '{")


def test_no_time_is_later_than_never() -> None:
    assert expiry(1e15) == expiry(None)


def test_a_long_run_of_digits_is_no_duration_and_costs_nothing() -> None:
    with pytest.raises(ValueError, match="characters long"):
        parse_duration("1" * 10**6 + "x")


def test_lists_end_somewhere_and_the_first_mistake_in_one_is_enough() -> None:
    with pytest.raises(InvalidRequest, match=r'^"messages" has more than 4096 entries$'):
        read_body(
            ChatBody, b'{"model":"m","messages":[' + b'{"role":"user","content":""},' * 4096 + b'{"role":"user"}]}'
        )
    with pytest.raises(InvalidRequest, match=r"^\"messages\[0\]\" "):
        read_body(ChatBody, b'{"model":"m","messages":[' + b"1," * 2000 + b"1]}")
    with pytest.raises(InvalidRequest, match=r'^"options.stop" has 257 entries'):
        read_body(ChatBody, b'{"model":"m","options":{"stop":[' + b'"x",' * 256 + b'"x"]}}')


def test_a_model_has_no_name_of_a_page() -> None:
    with pytest.raises(InvalidRequest, match="512 characters"):
        read_body(ChatBody, b'{"model":"' + b"m" * 513 + b'"}')
