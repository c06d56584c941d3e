"""Model source ``folder``: folders in the Hugging Face or MLX layout on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.source import ModelSource


def _source(settings: Any, context: PluginContext) -> ModelSource:
    from runtime_folder.source import FolderSource

    return FolderSource((*settings.paths, *context.model_paths))


@hookimpl
def register_settings(register: Callable[[type[BaseModel]], None]) -> None:
    """Register the section ``plugins.folder``."""
    from runtime_folder.settings import FolderSettings

    register(FolderSettings)


@hookimpl
def register_source(register: Callable[[str, Factory[ModelSource]], None]) -> None:
    """Register the source."""
    register("folder", _source)
