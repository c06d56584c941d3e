"""The listening socket and uvicorn around it, as a block that the node enters and leaves."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.errors import ConfigError
from runtime.http.access import is_loopback, is_wildcard
from runtime.http.settings import DEFAULT_PORT, HttpSettings

_BACKLOG = 256
"""Connections that wait to be accepted, until the server accepts any."""
_ACCEPT_SHARE = 4
"""asyncio accepts as many connections in one go as may wait, some goes before the first can be counted and refused: so
many that wait are this share of those that may be open."""
_MOST_CONNECTIONS = 1024
"""Open at once; fewer where the process may not have twice as many files open, for models and peers need some too."""
_HEAD_SECONDS = 20.0
"""How long a client may take to send the head of a request once it has connected, or has begun to send it."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 35\r\n\r\nthis node has too many connections\n"
)
_KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs (httpx: 5 s), so that they close it first and
never send a request into a connection that is just being closed here."""
_LAST_WORDS_SECONDS = 2.0
"""How long cancelled requests may take to tell their clients."""


class Listener(msgspec.Struct, frozen=True):
    """A server that is accepting connections."""

    host: str
    port: int
    """The real one, where the settings said 0."""

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = "127.0.0.1" if is_wildcard(self.host) else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients reach it: the one for this machine first, then that for others, if it listens to them."""
        if not is_wildcard(self.host):
            return (self.url,)
        return (self.url, f"http://{socket.gethostname().lower()}:{self.port}")


class _Connection(H11Protocol):
    """Bounds what connections cost that ask for nothing; uvicorn's own limits begin with a request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.write(_FULL)
            transport.close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock unless it runs already, or stop it while a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self._expire)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        # One that became a request since, or was answered and idles, has uvicorn's clocks.
        self._deadline = None
        self.transport.close()


class _Server(uvicorn.Server):
    """Signals belong to the node, which has more to stop than this server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def most_connections() -> int:
    """Return how many connections may be open at once under the process's present limits."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, soft // 2)


@asynccontextmanager
async def serve(app: ASGIApp, settings: HttpSettings) -> AsyncIterator[Listener]:
    """Serve ``app`` for the length of the block.

    The port is bound before anything else. On leaving, no new connection is accepted, requests in progress have
    ``settings.shutdown_seconds`` to finish, and are then cancelled.

    Raises:
        ConfigError: the address cannot be listened on, or others could reach it and no API key is set.
    """
    if not is_loopback(settings.host) and not settings.api_key:
        raise ConfigError(
            f"http.host = {settings.host!r} lets other machines in, which needs a key; set http.api_key, "
            "or listen on 127.0.0.1",
            param="http.api_key",
        )
    sockets = _bind(settings.host, settings.port)
    listener = Listener(host=settings.host, port=sockets[0].getsockname()[1])
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=max(1, most_connections() // _ACCEPT_SHARE),
            timeout_graceful_shutdown=settings.shutdown_seconds,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
    )
    task = asyncio.create_task(server.serve(sockets=sockets), name=f"http server on port {listener.port}")
    try:
        yield listener
    finally:
        server.should_exit = True
        await task
        leftover = set(server.server_state.tasks)
        if leftover:
            await asyncio.wait(leftover, timeout=_LAST_WORDS_SECONDS)


def _bind(host: str, port: int) -> list[socket.socket]:
    """Listen on every address that ``host`` means, all with one port."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"http.host = {host!r} is not an address of this machine: {error}", param="http.host"
        ) from None
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # A free port is chosen by the first address, and then taken on the others.
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(_listening(family, kind, protocol, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise _refusal(host, chosen, error) from None
                # "localhost" means ::1 too, also where IPv6 is switched off.
                absent = error
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    if not sockets and absent is not None:
        raise _refusal(host, port, absent)
    return sockets


def _listening(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        # Bound is not yet taken: with SO_REUSEADDR only the second to listen is told.
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _refusal(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        whose = " (Ollama uses it by default)" if port == DEFAULT_PORT else ""
        return ConfigError(
            f"port {port} on {host} is taken{whose}; stop what listens there, or start with --set http.port=<another>",
            param="http.port",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs privileges; choose one above 1023 as http.port", param="http.port")
    return ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", param="http.host")
