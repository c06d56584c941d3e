"""Answers that last as long as a generation, and end with the client.

Three rules, which every frontend needs and which are easy to get wrong one at a time: an error before the first byte
is an ordinary error response; an error after it goes into the stream's own framing; and when the client goes away the
engine's generator is closed at once, wherever it is waiting. Imported by a frontend's routes, not by ``runtime.spi``
itself: the web framework is slow to import.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.errors import ActorStopped, RuntimeFault
from runtime.spi.engine import Engine, GenerationEvent, GenerationRequest

CLOSE_SECONDS = 5.0
"""How long a cancelled generation may take to clean up before its request is given up."""

T = TypeVar("T")


class Write(Protocol):
    """Sends one chunk to the client. The first one sends the response's head, with status 200, before it."""

    async def __call__(self, chunk: bytes) -> None: ...


@asynccontextmanager
async def generation(
    engine: Engine, request: GenerationRequest
) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
    """Hold a generation for the length of a block, and close it before the block is left, even when cancelled."""
    events = engine.generate(request)
    try:
        yield events
    finally:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await events.aclose()


async def while_connected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` and cancel it when the client disconnects. The request's body must have been read.

    Raises:
        ClientDisconnect: the client went away first; nobody will read a response.
    """
    results: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001 - raised again below, where the group cannot wrap it
            failures.append(error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise ClientDisconnect
    return results[0]


class Stream(Response):
    """A response whose body is written while it is produced.

    ``produce`` is called with :class:`Write`; what it raises before the first chunk becomes an error response. What
    it raises later is passed to ``on_fault``, whose bytes end the stream; an exception that is not a
    :class:`RuntimeFault` is a bug, so the client is told no details and the exception goes on to be logged.
    """

    def __init__(
        self,
        produce: Callable[[Write], Awaitable[None]],
        *,
        media_type: str,
        on_fault: Callable[[RuntimeFault], bytes],
    ) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        # A body of unknown length is sent chunked.
        del self.headers["content-length"]
        self._produce = produce
        self._on_fault = on_fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Produce the body, as an ASGI application."""
        del scope
        started = False
        lock = anyio.Lock(fast_acquire=True)

        async def write(chunk: bytes) -> None:
            nonlocal started
            async with lock:
                if not started:
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    started = True
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        async def end(chunk: bytes = b"") -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": False})

        try:
            await while_connected(receive, lambda: self._produce(write))
        except ClientDisconnect:
            return
        except RuntimeFault as fault:
            if not started:
                raise
            await end(self._on_fault(fault))
        except asyncio.CancelledError:
            # The server stops and did not wait longer: tell the client before the connection is closed.
            if started:
                await end(self._on_fault(ActorStopped("the node is stopping; send the request again")))
            raise
        except Exception:
            if started:
                await end(self._on_fault(RuntimeFault("internal error; the node's log has the details")))
            raise
        else:
            if not started:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await end()
