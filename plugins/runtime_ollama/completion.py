"""One generation while it runs, streamed or collected."""

from __future__ import annotations

import msgspec

from runtime.errors import ActorStopped
from runtime.spi import Delta, Engine, Finished, FinishReason, GenerationRequest, ScoredToken
from runtime.spi.streaming import Write, generation
from runtime_ollama.render import Line, Renderer


async def stream(engine: Engine, request: GenerationRequest, renderer: Renderer, write: Write) -> None:
    """Write a line for each piece of text, then the end."""
    async with generation(engine, request) as events:
        async for event in events:
            match event:
                case Delta():
                    await write(encode_line(renderer.delta(event)))
                case Finished():
                    await write(encode_line(renderer.end(_complete(event))))
                case _:
                    pass  # in NDJSON there is no line that means nothing, so nobody is told that it goes on


async def collect(engine: Engine, request: GenerationRequest, renderer: Renderer) -> Line:
    """Run to the end and return the whole answer."""
    pieces: list[str] = []
    tokens: list[ScoredToken] = []
    async with generation(engine, request) as events:
        async for event in events:
            match event:
                case Delta():
                    pieces.append(event.text)
                    tokens += event.tokens
                case Finished():
                    return renderer.end(_complete(event), "".join(pieces), tuple(tokens))
                case _:
                    pass
    raise ActorStopped("the generation ended without saying why; send the request again")


def encode_line(line: Line) -> bytes:
    """Frame one line of NDJSON."""
    return msgspec.json.encode(line) + b"\n"


def _complete(finished: Finished) -> Finished:
    if finished.reason is FinishReason.CANCELLED:
        raise ActorStopped("the generation was cancelled before it was complete; send the request again")
    return finished
