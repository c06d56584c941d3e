"""The section ``plugins.sample``."""

from __future__ import annotations

from pydantic import BaseModel


class SampleSettings(BaseModel):
    """What is said."""

    greeting: str = "hello"
