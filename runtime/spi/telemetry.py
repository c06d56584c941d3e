"""How the node's events leave it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fastapi import APIRouter


class RequestFinished(msgspec.Struct, frozen=True):
    """A generation ended. Durations are in seconds."""

    model: str
    reason: str
    """``stop``, ``length``, ``cancelled`` or ``error``."""
    prompt_tokens: int
    completion_tokens: int
    time_to_first_token: float | None
    duration: float


class ModelLoaded(msgspec.Struct, frozen=True):
    """This node finished loading its slice of a model."""

    model: str
    layers: int
    bytes: int
    seconds: float


class ModelUnloaded(msgspec.Struct, frozen=True):
    """This node let go of its slice of a model."""

    model: str
    layers: int


class PeerChanged(msgspec.Struct, frozen=True):
    """A peer joined, became unhealthy or suspect, went down, or is up again."""

    node: str
    state: str
    """``up``, ``unhealthy`` (it is up and cannot compute), ``suspect`` or ``down``."""


class HealthChanged(msgspec.Struct, frozen=True):
    """This node cannot compute any more, or it can again."""

    reason: str | None
    """Why it cannot; None if it can."""


TelemetryEvent = RequestFinished | ModelLoaded | ModelUnloaded | PeerChanged | HealthChanged


class Telemetry(ABC):
    """Receives events on the event loop; it must return at once."""

    @abstractmethod
    def emit(self, event: TelemetryEvent) -> None:
        """Take note of an event. Never called for a single token."""

    def router(self) -> APIRouter | None:
        """Routes to serve, such as ``/metrics``."""
        return None
