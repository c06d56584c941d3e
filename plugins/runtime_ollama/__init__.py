"""API frontend ``ollama``: Ollama's API at the root, so that its clients need no configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import Frontend, hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext


def _frontend(settings: Any, context: PluginContext) -> Frontend:
    from runtime_ollama.frontend import OllamaFrontend

    del settings, context
    return OllamaFrontend()


@hookimpl
def register_frontend(register: Callable[[str, Factory[Frontend]], None]) -> None:
    """Register the frontend."""
    register("ollama", _frontend)
