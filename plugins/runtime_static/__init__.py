"""Discovery ``static``: the peers that the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from runtime.spi.discovery import Discovery
    from runtime.spi.hookspecs import Factory, PluginContext


def _discovery(settings: Any, context: PluginContext) -> Discovery:
    from runtime_static.discovery import StaticDiscovery

    del context
    return StaticDiscovery(settings.peers)


@hookimpl
def register_settings(register: Callable[[type[BaseModel]], None]) -> None:
    """Register the section ``plugins.static``."""
    from runtime_static.settings import StaticSettings

    register(StaticSettings)


@hookimpl
def register_discovery(register: Callable[[str, Factory[Discovery]], None]) -> None:
    """Register the discovery."""
    register("static", _discovery)
