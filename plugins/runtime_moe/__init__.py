"""Mixtures of experts: architectures whose checkpoints hold experts one by one, fused, or stacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.spi import ModelFamily, hookimpl
from runtime.spi.hookspecs import Factory, PluginContext


@hookimpl
def register_family(register: Callable[[str, Factory[ModelFamily]], None]) -> None:
    """Offer the family ``moe``."""
    register("moe", _make)


def _make(settings: Any, context: PluginContext) -> ModelFamily:
    del settings, context
    from runtime_moe.family import MoeFamily

    return MoeFamily()
