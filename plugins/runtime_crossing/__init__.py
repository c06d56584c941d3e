"""Model families whose layers hand on more than the hidden state, which must cross every cut with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.spi import ModelFamily, hookimpl
from runtime.spi.hookspecs import Factory, PluginContext


@hookimpl
def register_family(register: Callable[[str, Factory[ModelFamily]], None]) -> None:
    """Offer the family ``crossing``."""
    register("crossing", _make)


def _make(settings: Any, context: PluginContext) -> ModelFamily:
    del settings, context
    from runtime_crossing.family import CrossingFamily

    return CrossingFamily()
