"""Memory estimator ``safetensors``: what a slice needs, from the headers of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import hookimpl

if TYPE_CHECKING:
    from runtime.spi.hookspecs import Factory, PluginContext
    from runtime.spi.memory import MemoryEstimator


def _estimator(settings: Any, context: PluginContext) -> MemoryEstimator:
    from runtime_memory.estimator import SafetensorsEstimator

    del settings, context
    return SafetensorsEstimator()


@hookimpl
def register_memory(register: Callable[[str, Factory[MemoryEstimator]], None]) -> None:
    """Register the estimator."""
    register("safetensors", _estimator)
