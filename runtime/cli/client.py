"""A node's HTTP API, as the verbs use it. Imported by a verb once it runs: httpx is slow to import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from runtime.errors import ConfigError, PeerUnreachable, RuntimeFault, Unauthorized
from runtime.http.access import is_loopback, split_host
from runtime.spi import ChatMessage, Download

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_DATA = "data: "


class Piece(msgspec.Struct, frozen=True):
    """More of an answer."""

    text: str


class Spent(msgspec.Struct, frozen=True):
    """The end of an answer: its reason, and its tokens."""

    reason: str
    prompt_tokens: int
    completion_tokens: int


class NodeClient:
    """Talks to one node. A context manager.

    Every method raises :class:`PeerUnreachable` when no node answers at the URL, :class:`Unauthorized` when it wants
    another key, and :class:`RuntimeFault` with the node's own words when it refuses.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = _normalised(url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            # A proxy that the environment names cannot reach this machine's own loopback.
            trust_env=not is_loopback(split_host(httpx.URL(self.url).netloc.decode())),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """Return the JSON at ``/runtime/v1/<path>``."""
        with self._reaching():
            response = self._http.get(f"/runtime/v1/{path}")
            return self._accepted(response).json()

    def plan(self, model: str, context: int | None) -> Any:
        """Return where the node would place a model, however long it takes to measure what it must know."""
        lines = self._lines("/runtime/v1/plan", {"model": model, "context": context})
        return json.loads("".join(lines))

    def load(self, model: str) -> Iterator[Download]:
        """Have a model loaded, yielding progress until it is."""
        for line in self._lines("/runtime/v1/load", {"model": model}):
            event = json.loads(line)
            if "error" in event:
                raise RuntimeFault(event["error"]["message"])
            if "step" in event:
                yield msgspec.convert(event, Download)

    def chat(self, model: str, messages: list[ChatMessage], options: dict[str, Any]) -> Iterator[Piece | Spent]:
        """Have a conversation continued, yielding text as it comes, and the end."""
        body = {
            "model": model,
            "messages": msgspec.to_builtins(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        reason = "stop"
        for line in self._lines("/v1/chat/completions", body):
            if not line.startswith(_DATA) or line == f"{_DATA}[DONE]":
                continue
            event = json.loads(line.removeprefix(_DATA))
            if "error" in event:
                raise RuntimeFault(event["error"]["message"])
            for choice in event["choices"]:
                reason = choice["finish_reason"] or reason
                if choice["delta"].get("content"):
                    yield Piece(choice["delta"]["content"])
            if event.get("usage"):
                yield Spent(reason, event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])

    def _lines(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        # Loading a model, and a slow one's next token, take as long as they take.
        patient = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        with self._reaching(), self._http.stream("POST", path, json=body, timeout=patient) as response:
            if not response.is_success:
                response.read()
            yield from (line for line in self._accepted(response).iter_lines() if line)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise PeerUnreachable(
                f"no node answers at {self.url}: start one with `runtime start`, or name it with --url"
            ) from None
        except httpx.RemoteProtocolError as error:
            raise PeerUnreachable(f"the connection to {self.url} broke: {error}") from None
        except httpx.TimeoutException:
            raise PeerUnreachable(f"{self.url} did not answer within {_ANSWER_SECONDS:g} s") from None
        except httpx.TransportError as error:
            raise PeerUnreachable(f"cannot talk to {self.url}: {error}") from None

    def _accepted(self, response: httpx.Response) -> httpx.Response:
        """Return a response of success; raise what the node, or whatever else is there, says instead."""
        if response.is_success and "json" in response.headers.get("content-type", ""):
            return response
        if response.is_success and response.headers.get("content-type", "").startswith("text/event-stream"):
            return response
        message = _message(response)
        if message is None or response.is_success:
            raise self._stranger()
        if response.status_code == 401:
            raise Unauthorized(f"{message} (here: --api-key or RUNTIME_API_KEY)")
        if response.status_code == 404 and response.url.path.startswith("/v1") and "serves nothing" in message:
            raise RuntimeFault(f"the node at {self.url} does not serve the frontend 'openai', which this verb uses")
        raise RuntimeFault(message)

    def _stranger(self) -> PeerUnreachable:
        """Say what it is that answers instead of a node."""
        try:
            root = self._http.get("/").text
        except httpx.HTTPError:
            root = ""
        who = "Ollama itself" if root.startswith("Ollama is running") else "something that is not a node"
        return PeerUnreachable(
            f"{who} answers at {self.url}: stop it, or start a node on another port with "
            "`runtime start --set http.port=<port>` and name that with --url"
        )


def _message(response: httpx.Response) -> str | None:
    """Return the message of an error in the kernel's or OpenAI's form, and None for anything else."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return message if isinstance(message, str) else None


def _normalised(url: str) -> str:
    """Complete ``host:port`` to a URL.

    Raises:
        ConfigError: it cannot be one.
    """
    text = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url {url!r} is not a URL: {error}", param="--url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--url {url!r} is not a URL such as http://127.0.0.1:11434", param="--url")
    return text.rstrip("/")
