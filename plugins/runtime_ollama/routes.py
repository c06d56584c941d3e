"""The routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from runtime.errors import RuntimeFault
from runtime.spi import Engine, GenerationRequest
from runtime.spi.body import read_body
from runtime.spi.streaming import Stream, Write, while_connected
from runtime_ollama.cards import Process, Show, Tag
from runtime_ollama.completion import collect, stream
from runtime_ollama.convert import chat_request, generate_request
from runtime_ollama.names import check_context, resolve
from runtime_ollama.render import Line, Renderer
from runtime_ollama.schema import ChatBody, GenerateBody, GenerationBody, ShowBody, refuse_unsupported

API_VERSION = "0.12.11"
"""The Ollama whose API these routes follow. Clients compare it with what they need, so the runtime's own version
would lock them out; that one is at ``/runtime/v1/status``."""

_READ = ["GET", "HEAD"]


def ollama_router(engine: Engine, error_body: Callable[[RuntimeFault], dict[str, Any]]) -> APIRouter:
    """Make the routes over an engine; ``error_body`` frames an error that comes once a stream has begun."""
    router = APIRouter()

    async def answer(
        request: Request, body: GenerationBody, generation: GenerationRequest, renderer: Renderer
    ) -> Response:
        num_ctx = body.options.num_ctx if body.options else None

        async def whole() -> Line:
            await check_context(engine, generation.model, num_ctx)
            return await collect(engine, generation, renderer)

        async def produce(write: Write) -> None:
            await check_context(engine, generation.model, num_ctx)
            await stream(engine, generation, renderer, write)

        if not body.streams:
            return _json(await while_connected(request.receive, whole))
        return Stream(
            produce,
            media_type="application/x-ndjson",
            on_fault=lambda fault: msgspec.json.encode(error_body(fault)) + b"\n",
        )

    async def load_only(request: Request, body: GenerationBody, name: str, renderer: Renderer) -> Response:
        """Answer a request without a prompt: it loads the model, or with ``keep_alive`` 0 lets it go."""
        if body.keep_alive == 0:
            await engine.unload(name)
            return _json(renderer.loaded("unload"))
        await while_connected(request.receive, lambda: engine.load(name, keep_alive=body.keep_alive))
        return _json(renderer.loaded("load"))

    @router.api_route("/", methods=_READ)
    async def root() -> Response:
        # Word for word: clients look for it.
        return PlainTextResponse("Ollama is running")

    @router.api_route("/api/version", methods=_READ)
    async def version() -> Response:
        return _json({"version": API_VERSION})

    @router.api_route("/api/tags", methods=_READ)
    async def tags() -> Response:
        return _json({"models": [Tag.of(card) for card in await engine.models()]})

    @router.api_route("/api/ps", methods=_READ)
    async def ps() -> Response:
        cards = {card.name: card for card in await engine.models()}
        return _json({"models": [Process.of(loaded, cards.get(loaded.name)) for loaded in await engine.loaded()]})

    @router.post("/api/show")
    async def show(request: Request) -> Response:
        body = read_body(ShowBody, await request.body())
        return _json(Show.of(await engine.model(await resolve(engine, body.model))))

    @router.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = read_body(ChatBody, await request.body())
        refuse_unsupported(body)
        name, renderer = await resolve(engine, body.model), Renderer(body.model, chat=True)
        if not body.messages:
            return await load_only(request, body, name, renderer)
        return await answer(request, body, chat_request(name, body), renderer)

    @router.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = read_body(GenerateBody, await request.body())
        refuse_unsupported(body)
        name, renderer = await resolve(engine, body.model), Renderer(body.model, chat=False)
        if not body.prompt:
            return await load_only(request, body, name, renderer)
        return await answer(request, body, generate_request(name, body), renderer)

    return router


def _json(value: msgspec.Struct | dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
