"""The route ``/sample/hello``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from runtime.errors import RuntimeFault
from runtime.spi import Engine, Frontend

if TYPE_CHECKING:
    from runtime_sample_echo.settings import SampleSettings


class SampleFrontend(Frontend):
    """One route, which greets and names the node."""

    prefixes = ("/sample",)

    def __init__(self, settings: SampleSettings, node: str) -> None:
        self._greeting = settings.greeting
        self._node = node

    def router(self, engine: Engine) -> APIRouter:
        """Make the route."""
        del engine
        router = APIRouter()

        @router.get("/sample/hello")
        async def hello() -> dict[str, str]:
            return {"greeting": self._greeting, "node": self._node}

        return router

    def error_body(self, fault: RuntimeFault) -> dict[str, Any]:
        """Put an error into a form that only this frontend has."""
        return {"sample_error": fault.message}
