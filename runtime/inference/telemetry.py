"""Telling the telemetry plugins."""

from __future__ import annotations

from collections.abc import Iterable

from loguru import logger

from runtime.spi import Telemetry, TelemetryEvent


def emit_all(sinks: Iterable[Telemetry], event: TelemetryEvent) -> None:
    """Tell every sink of an event; what a sink raises is logged, and harms neither the others nor what happened."""
    for sink in sinks:
        try:
            sink.emit(event)
        except Exception as error:  # noqa: BLE001 - a plugin's bug must not fail the request or the link it is told of
            logger.opt(exception=error).error(
                "telemetry {} failed to take note of {}", type(sink).__name__, type(event).__name__
            )
