"""API frontend ``openai``: models, chat completions and completions under ``/v1``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import Frontend, hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext


def _frontend(settings: Any, context: PluginContext) -> Frontend:
    from runtime_openai.frontend import OpenAIFrontend

    del settings, context
    return OpenAIFrontend()


@hookimpl
def register_frontend(register: Callable[[str, Factory[Frontend]], None]) -> None:
    """Register the frontend."""
    register("openai", _frontend)
