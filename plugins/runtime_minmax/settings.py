"""The section ``plugins.minmax``."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator

_LAYERS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


class MinmaxSettings(BaseModel):
    """What to optimize, and what the user wants whatever it costs."""

    objective: Literal["latency", "throughput"] = "latency"
    """The least time for a token of one generation, or the least work for the busiest stage of many."""
    prompt_ratio: float = Field(default=4.0, ge=0, le=1000, allow_inf_nan=False)
    """Prompt tokens that are taken in for each token that is generated."""
    tolerance: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    """How much slower than the best plan, as a share, a plan may be that leaves the layers where they are."""
    exclude: tuple[str, ...] = ()
    """Nodes that get no layers."""
    max_layers: dict[str, int] = {}
    """The most layers that a node gets, by node."""
    only: dict[str, tuple[str, ...]] = {}
    """By model, the nodes among which it is placed."""
    pin: dict[str, dict[str, str]] = {}
    """By model and node, layers such as ``"0-9"`` that are on that node, and on no other."""

    @field_validator("max_layers")
    @classmethod
    def _not_negative(cls, limits: dict[str, int]) -> dict[str, int]:
        for node, most in limits.items():
            if most < 0:
                raise ValueError(f"{node} cannot hold {most} layers at most; use 0 or more")
        return limits

    @field_validator("pin")
    @classmethod
    def _well_formed(cls, pins: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for nodes in pins.values():
            for layers in nodes.values():
                pinned_layers(layers)
        return pins


def pinned_layers(text: str) -> tuple[int, int]:
    """Read ``"4"`` or ``"0-9"``, the last included; return the first layer and the one after the last.

    Raises:
        ValueError: it is neither, or runs backwards.
    """
    match = _LAYERS.fullmatch(text)
    if match is None:
        raise ValueError(f'layers are written "4" or "0-9", not {text!r}')
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"layers {text} run backwards")
    return first, last + 1
