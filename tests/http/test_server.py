"""The server on a real socket: refusals, dialects, the kernel's own API, starting and stopping."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import APIRouter
from loguru import logger
from pydantic import BaseModel

from runtime.errors import CheckpointCorrupt, ConfigError, Overloaded, PluginError, RuntimeFault
from runtime.http.admin import admin_router
from runtime.http.listener import serve
from runtime.http.server import create_app
from runtime.http.settings import HttpSettings
from runtime.spi import Engine, Frontend
from tests.http.scripted import MODEL, ScriptedEngine, ScriptedInspector, internal_bug, serving

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine, max_body_bytes=10_000) as node, httpx.AsyncClient(base_url=node.url) as client:
        yield client


class Body(BaseModel):
    """A body that FastAPI itself checks."""

    count: int


class Plain(Frontend):
    """A frontend of one route."""

    def __init__(self, path: str = "/plain", prefixes: tuple[str, ...] = ()) -> None:
        self._path = path
        self._prefixes = prefixes

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self._prefixes

    def error_body(self, fault: RuntimeFault) -> dict[str, Any]:
        return {"plain": fault.message}

    def router(self, engine: Engine) -> APIRouter:
        router = APIRouter()

        @router.get(self._path)
        async def fail() -> None:
            raise Overloaded("no room")

        @router.post(self._path)
        async def take(body: Body) -> None:
            return None

        return router


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("/v1/nothing", lambda body: body["error"]["message"]),
        ("/api/nothing", lambda body: body["error"]),
        ("/apiary", lambda body: body["error"]["message"]),
    ],
)
async def test_an_unknown_path_is_refused_in_the_dialect_of_its_owner(
    client: httpx.AsyncClient, path: str, read: Any
) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert read(response.json()) == f"this node serves nothing at GET {path}"


async def test_a_wrong_method_is_told_the_right_one(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/chat")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json() == {"error": "/api/chat does not take GET; use POST"}


async def test_a_foreign_host_is_refused_in_the_dialect_of_the_path(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"
    assert (await client.get("/api/tags", headers={"Host": "evil.example"})).json()["error"].startswith("this node")
    assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 403


async def test_a_foreign_page_cannot_make_the_node_generate(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    # A "simple" request: no preflight, so only the server stands in its way.
    response = await client.post(
        "/v1/chat/completions",
        content=json.dumps(CHAT),
        headers={"Origin": "https://evil.example", "Content-Type": "text/plain"},
    )
    assert response.status_code == 403
    assert engine.requests == []


async def test_a_local_page_may_ask_and_read_the_answer(client: httpx.AsyncClient) -> None:
    origin = "http://localhost:3000"
    preflight = await client.options(
        "/v1/chat/completions",
        headers={"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"},
    )
    assert preflight.status_code == 200
    answer = await client.post("/v1/chat/completions", json=CHAT, headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert (
        "access-control-allow-origin" not in (await client.get("/", headers={"Origin": "https://evil.example"})).headers
    )


async def test_the_key_is_wanted_and_a_wrong_one_refused() -> None:
    async with serving(ScriptedEngine(), api_key="sesame") as node, httpx.AsyncClient(base_url=node.url) as client:
        assert (await client.get("/")).status_code == 200
        missing = await client.get("/v1/models")
        assert missing.status_code == 401
        assert missing.headers["www-authenticate"] == "Bearer"
        assert missing.json()["error"]["code"] == "invalid_api_key"
        wrong = await client.get("/api/tags", headers={"Authorization": "Bearer open"})
        assert (wrong.status_code, "wrong" in wrong.json()["error"]) == (401, True)
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer sesame"})).status_code == 200


async def test_a_huge_body_is_refused_whether_or_not_its_length_is_declared(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    declared = await client.post("/v1/chat/completions", content=b"x" * 20_000)
    streamed = await client.post("/v1/chat/completions", content=chunks())
    for response in (declared, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert "10,000 bytes" in response.json()["error"]["message"]
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_bug_is_logged_with_its_stack_and_answered_without() -> None:
    events: list[str] = []
    sink = logger.add(events.append, format="{message}", backtrace=False, diagnose=False)
    try:
        async with serving(ScriptedEngine(fault=internal_bug())) as node, httpx.AsyncClient() as client:
            response = await client.post(f"{node.url}/v1/chat/completions", json=CHAT)
            assert response.status_code == 500
            assert response.json()["error"]["type"] == "server_error"
            assert "secret detail" not in response.text
            assert (await client.get(f"{node.url}/v1/models")).status_code == 200
    finally:
        logger.remove(sink)
    assert any("ZeroDivisionError: secret detail" in event and "scripted.py" in event for event in events)


async def test_a_fault_of_a_plugin_without_a_prefix_speaks_the_kernels_dialect() -> None:
    async with serving(ScriptedEngine(), frontends={"plain": Plain()}) as node, httpx.AsyncClient() as client:
        response = await client.get(f"{node.url}/plain")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json() == {"error": {"code": "overloaded", "message": "no room"}}


async def test_the_longest_prefix_owns_a_path_and_fastapis_own_refusals_speak_its_dialect() -> None:
    frontends: dict[str, Frontend] = {
        "wide": Plain("/a", ("/a",)),
        "narrow": Plain("/a/b", ("/a/b/",)),
    }
    async with serving(ScriptedEngine(), frontends=frontends) as node, httpx.AsyncClient(base_url=node.url) as client:
        assert (await client.get("/a/b")).json() == {"plain": "no room"}
        refused = await client.post("/a/b", json={"count": "many"})
        assert refused.status_code == 400
        assert refused.json()["plain"].startswith('"count" should be a valid integer')


def test_two_frontends_with_one_path_are_both_named(engine: ScriptedEngine) -> None:
    admin = admin_router(engine, ScriptedInspector())
    frontends: dict[str, Frontend] = {"one": Plain("/x/{name}"), "two": Plain("/x/{id}")}
    with pytest.raises(PluginError, match=r"frontend 'one' and frontend 'two' both serve GET /x/\{id\}"):
        create_app(frontends, {}, engine, admin, HttpSettings())
    with pytest.raises(PluginError, match=r"the kernel's own API and frontend 'rude' both serve"):
        create_app({"rude": Plain("/runtime/v1/status")}, {}, engine, admin, HttpSettings())


async def test_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is taken; .*--set http\.port="):
            async with serving(ScriptedEngine(), port=port):
                pass


async def test_a_port_is_free_again_once_the_server_has_stopped(engine: ScriptedEngine) -> None:
    async with serving(engine) as node, httpx.AsyncClient() as client:
        await client.get(node.url)
    async with serving(engine, port=node.port) as again, httpx.AsyncClient() as client:
        assert again.port == node.port
        assert (await client.get(again.url)).text == "Ollama is running"


async def test_localhost_listens_on_every_address_it_has_with_one_port(engine: ScriptedEngine) -> None:
    async with serving(engine, host="localhost") as node, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{node.port}/")).status_code == 200
        assert node.url == f"http://localhost:{node.port}"


async def test_other_machines_are_not_let_in_without_a_key(engine: ScriptedEngine) -> None:
    with pytest.raises(ConfigError, match=r"http\.api_key"):
        async with serving(engine, host="0.0.0.0"):  # noqa: S104 - the case under test
            pass


async def test_a_host_that_is_not_ours_cannot_be_bound(engine: ScriptedEngine) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        async with serving(engine, host="192.0.2.1", api_key="sesame"):
            pass


async def test_stopping_cancels_a_stream_after_the_deadline_and_tells_the_client() -> None:
    engine = ScriptedEngine(pause_after=1)
    lines: list[str] = []

    async def read(url: str) -> None:
        async with httpx.AsyncClient() as client, client.stream("POST", f"{url}/api/chat", json=CHAT) as response:
            lines.extend([line async for line in response.aiter_lines()])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with serving(engine, shutdown_seconds=0) as node:
                tasks.start_soon(read, node.url)
                await engine.paused.wait()
            await engine.closed.wait()
    assert json.loads(lines[-1]) == {"error": "the node is stopping; send the request again"}


async def test_stopping_answers_a_request_that_waits_for_a_whole_answer() -> None:
    engine = ScriptedEngine(pause_after=1)
    answers: list[httpx.Response] = []

    async def ask(url: str) -> None:
        async with httpx.AsyncClient() as client:
            answers.append(await client.post(f"{url}/v1/chat/completions", json=CHAT))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with serving(engine, shutdown_seconds=0) as node:
                tasks.start_soon(ask, node.url)
                await engine.paused.wait()
            await engine.closed.wait()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "actor_stopped")


async def test_a_request_in_progress_may_finish_while_the_server_stops() -> None:
    engine = ScriptedEngine(pause_after=1)
    lines: list[str] = []

    async def read(url: str) -> None:
        async with httpx.AsyncClient() as client, client.stream("POST", f"{url}/api/chat", json=CHAT) as response:
            lines.extend([line async for line in response.aiter_lines()])

    async def resume_once_stopping(port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
        engine.resume.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, serving(engine, shutdown_seconds=5) as node:
            tasks.start_soon(read, node.url)
            await engine.paused.wait()
            tasks.start_soon(resume_once_stopping, node.port)
    assert json.loads(lines[-1])["done"] is True


async def test_an_app_without_frontends_still_answers_the_kernels_api(engine: ScriptedEngine) -> None:
    async with serving(engine, frontends={}) as node, httpx.AsyncClient(base_url=node.url) as client:
        assert (await client.get("/runtime/v1/status")).json()["node"] == "alpha"
        assert [each["state"] for each in (await client.get("/runtime/v1/nodes")).json()["nodes"]] == ["self", "down"]
        tree = (await client.get("/runtime/v1/actors")).json()
        assert [(each["path"], each["parent"]) for each in tree["actors"]][:2] == [
            ("/models", None),
            ("/models/1", "/models"),
        ]
        assert tree["dead_letters"] == {"late_reply": 2}
        assert (await client.get("/runtime/v1/plugins")).json() == {"plugins": [{"name": "openai", "status": "loaded"}]}
        models = (await client.get("/runtime/v1/models")).json()["models"]
        assert [each["name"] for each in models] == ["acme/tiny-llama", MODEL]
        assert "config" not in models[0]
        stages = (await client.get("/runtime/v1/ps")).json()["models"][0]["stages"]
        assert [(each["node"], each["first_layer"], each["last_layer"]) for each in stages] == [
            ("alpha", 0, 14),
            ("beta", 15, 29),
        ]


async def test_a_load_reports_progress_line_by_line(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    response = await client.post("/runtime/v1/load", json={"model": MODEL, "keep_alive": 60})
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"model": MODEL, "step": "downloading", "done": 50, "total": 100},
        {"model": MODEL, "done": True},
    ]
    assert (await client.post("/runtime/v1/unload", json={"model": MODEL})).json() == {"model": MODEL, "done": True}
    assert engine.calls == [("load", MODEL, 60.0), ("unload", MODEL, None)]


async def test_a_load_that_fails_answers_with_a_status_or_ends_its_stream_with_the_error() -> None:
    engine = ScriptedEngine(fault=CheckpointCorrupt("model.safetensors is cut short"))
    async with serving(engine) as node, httpx.AsyncClient(base_url=node.url) as client:
        unknown = await client.post("/runtime/v1/load", json={"model": "smolm2"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        corrupt = await client.post("/runtime/v1/load", json={"model": MODEL})
        assert json.loads(corrupt.text.splitlines()[-1])["error"]["code"] == "checkpoint_corrupt"
        misspelt = await client.post("/runtime/v1/load", json={"modle": MODEL})
        assert misspelt.status_code == 400


async def test_serving_survives_requests_that_are_not_http(engine: ScriptedEngine) -> None:
    app = create_app({}, {}, engine, admin_router(engine, ScriptedInspector()), HttpSettings())
    async with serve(app, HttpSettings(port=0)) as node:
        async with await anyio.connect_tcp("127.0.0.1", node.port) as stream:
            await stream.send(b"\x16\x03\x01 not http\r\n\r\n")
            assert b"400" in await stream.receive()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{node.url}/runtime/v1/status")).status_code == 200


async def test_a_model_cannot_be_kept_longer_than_dates_go(client: httpx.AsyncClient) -> None:
    response = await client.post("/runtime/v1/load", json={"model": MODEL, "keep_alive": 1e15})
    assert response.status_code == 400
    assert "keep_alive" in response.text


async def test_an_allowed_page_may_read_the_answer_however_its_origin_is_configured(engine: ScriptedEngine) -> None:
    origin = "https://chat.example.org"
    async with serving(engine, allowed_origins=("https://Chat.example.org/",)) as node, httpx.AsyncClient() as client:
        body = {"model": MODEL}
        response = await client.post(f"{node.url}/runtime/v1/unload", json=body, headers={"Origin": origin})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
