"""Dense model families: architectures whose layers are plain tensors, cut and loaded as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.spi import ModelFamily, hookimpl
from runtime.spi.hookspecs import Factory, PluginContext


@hookimpl
def register_family(register: Callable[[str, Factory[ModelFamily]], None]) -> None:
    """Offer the family ``dense``."""
    register("dense", _make)


def _make(settings: Any, context: PluginContext) -> ModelFamily:
    del settings, context
    from runtime_dense.family import DenseFamily

    return DenseFamily()
