"""Placement policy ``proportional``: layers in proportion to free memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.placement import PlacementPolicy


def _policy(settings: Any, context: PluginContext) -> PlacementPolicy:
    from runtime_proportional.policy import ProportionalPlacement

    del settings, context
    return ProportionalPlacement()


@hookimpl
def register_placement(register: Callable[[str, Factory[PlacementPolicy]], None]) -> None:
    """Register the policy."""
    register("proportional", _policy)
