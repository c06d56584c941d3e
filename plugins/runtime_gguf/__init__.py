"""Model source ``gguf``: the embedded default model ``smollm2:135m``, and any ``.gguf`` file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.source import ModelSource


def _source(settings: Any, context: PluginContext) -> ModelSource:
    from runtime_gguf.source import GgufSource

    del settings
    return GgufSource(context.data_dir / "gguf", context.model_paths)


@hookimpl
def register_source(register: Callable[[str, Factory[ModelSource]], None]) -> None:
    """Register the source."""
    register("gguf", _source)
