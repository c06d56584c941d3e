"""The first thing a request meets, as pure ASGI so that streams pass through untouched."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.errors import InvalidRequest, RuntimeFault, TooLarge
from runtime.http.access import AccessPolicy
from runtime.http.dialect import Dialects
from runtime.spi.caller import CALLER

_DRAIN_FACTOR = 4
"""A refused body is read to its end up to this many times the limit. Closing at once would reset the connection, and
a client that is still sending would never see why."""


class Guard:
    """Checks Host, Origin, key and size of every request before the application sees it."""

    def __init__(self, app: ASGIApp, *, policy: AccessPolicy, dialects: Dialects, max_body_bytes: int) -> None:
        self._app = app
        self._policy = policy
        self._dialects = dialects
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal in the dialect of its path."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except RuntimeFault as fault:
            if isinstance(fault, TooLarge):
                await self._drain(receive)
            await self._dialects.response(scope["path"], fault)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        method, path, host = scope["method"], scope["path"], headers.get("host")
        self._policy.check_host(host)
        self._policy.check_origin(method, headers.get("origin"), host)
        CALLER.set(self._policy.check_key(method, path, headers.get("authorization")))
        declared = headers.get("content-length", "0")
        if not declared.isdecimal():
            raise InvalidRequest(f"Content-Length must be a number of bytes, and is {declared!r}")
        if int(declared) > self._limit:
            raise self._too_large(f"{int(declared):,} bytes")

    def _limited(self, receive: Receive) -> Receive:
        """Count a body as it arrives: one sent in chunks declares no length."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    if message.get("more_body", False):
                        await self._drain(receive)
                    raise self._too_large("longer")
            return message

        return counted

    async def _drain(self, receive: Receive) -> None:
        drained = 0
        while drained < _DRAIN_FACTOR * self._limit:
            message = await receive()
            drained += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return

    def _too_large(self, size: str) -> TooLarge:
        return TooLarge(f"the request body is {size}; this node takes {self._limit:,} bytes (http.max_body_bytes)")
