"""Placement policy ``minmax``: the fastest cut that fits, exactly, from measured speeds, links and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.placement import PlacementPolicy


def _policy(settings: Any, context: PluginContext) -> PlacementPolicy:
    from runtime_minmax.policy import MinmaxPlacement

    del context
    return MinmaxPlacement(settings)


@hookimpl
def register_settings(register: Callable[[type[BaseModel]], None]) -> None:
    """Register the section ``plugins.minmax``."""
    from runtime_minmax.settings import MinmaxSettings

    register(MinmaxSettings)


@hookimpl
def register_placement(register: Callable[[str, Factory[PlacementPolicy]], None]) -> None:
    """Register the policy."""
    register("minmax", _policy)
