"""Model source ``hub``: repositories of the Hugging Face Hub, ``org/name`` or ``org/name@revision``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.source import ModelSource


def _source(settings: Any, context: PluginContext) -> ModelSource:
    from runtime_hub.source import HubSource

    del settings
    return HubSource(context.data_dir / "hub")


@hookimpl
def register_source(register: Callable[[str, Factory[ModelSource]], None]) -> None:
    """Register the source."""
    register("hub", _source)
