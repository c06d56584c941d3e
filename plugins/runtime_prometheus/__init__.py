"""Telemetry ``prometheus``: counters and histograms at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import Telemetry, hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext


def _telemetry(settings: Any, context: PluginContext) -> Telemetry:
    from runtime_prometheus.telemetry import PrometheusTelemetry

    del settings
    return PrometheusTelemetry(context.node)


@hookimpl
def register_telemetry(register: Callable[[str, Factory[Telemetry]], None]) -> None:
    """Register the telemetry."""
    register("prometheus", _telemetry)
