"""How an API is spoken over HTTP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from runtime.errors import RuntimeFault
from runtime.spi.engine import Engine

if TYPE_CHECKING:
    from fastapi import APIRouter


class Frontend(ABC):
    """One API dialect: routes over the engine, and errors as its clients expect them.

    Routes raise :class:`~runtime.errors.RuntimeFault`; the server turns it, and its own refusals (a wrong key, a
    body that is not JSON, an unknown path), into a response with the :meth:`error_body` of the frontend that owns
    the path. Only a stream that has begun must put a later error into its own framing.
    """

    @property
    @abstractmethod
    def prefixes(self) -> tuple[str, ...]:
        """Path prefixes that this frontend owns, for the dialect of errors: ``("/v1",)``. The longest match wins."""

    @abstractmethod
    def router(self, engine: Engine) -> APIRouter:
        """Make the routes."""

    @abstractmethod
    def error_body(self, fault: RuntimeFault) -> dict[str, Any]:
        """Put an error into this API's form. The status code is the fault's own ``http_status``."""

    def greeting(self, url: str, model: str, key: bool) -> str | None:
        """Return a shell command that tries this API at ``url`` with ``model``, for ``runtime start`` to print.

        With ``key``, the command reads the API key from the environment variable ``RUNTIME_API_KEY``.
        """
        del url, model, key
        return None
