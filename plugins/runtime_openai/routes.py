"""The routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from runtime.errors import RuntimeFault
from runtime.spi import Engine
from runtime.spi.body import read_body
from runtime.spi.streaming import Stream, Write, while_connected
from runtime_openai.completion import ChatForm, Run, TextForm
from runtime_openai.convert import chat_requests, completion_requests
from runtime_openai.render import Model, ModelList, server_sent
from runtime_openai.schema import ChatBody, CompletionBody, GenerationBody, refuse_unsupported


def openai_router(engine: Engine, error_body: Callable[[RuntimeFault], dict[str, Any]]) -> APIRouter:
    """Make the routes over an engine; ``error_body`` frames an error that comes once a stream has begun."""
    router = APIRouter(prefix="/v1")

    async def answer(request: Request, body: GenerationBody, run: Run) -> Response:
        if not body.stream:
            return _json(await while_connected(request.receive, run.collect))
        include_usage = bool(body.stream_options and body.stream_options.include_usage)

        async def produce(write: Write) -> None:
            await run.stream(write, include_usage=include_usage)

        return Stream(produce, media_type="text/event-stream", on_fault=lambda fault: server_sent(error_body(fault)))

    @router.get("/models")
    async def models() -> Response:
        return _json(ModelList([Model.of(card) for card in await engine.models()]))

    # Names of models contain slashes.
    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        return _json(Model.of(await engine.model(name)))

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = read_body(ChatBody, await request.body())
        refuse_unsupported(body)
        return await answer(request, body, Run(engine, ChatForm(), chat_requests(body), choices_per_prompt=body.n or 1))

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        body = read_body(CompletionBody, await request.body())
        refuse_unsupported(body)
        count = body.n or 1
        echoed = [prompt if body.echo and isinstance(prompt, str) else "" for prompt in body.prompt]
        run = Run(
            engine,
            TextForm(),
            completion_requests(body),
            choices_per_prompt=count,
            prefixes=[prefix for prefix in echoed for _ in range(count)],
        )
        return await answer(request, body, run)

    return router


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
