"""The counter as an actor of xoscar's."""

from __future__ import annotations

import xoscar


class XoscarCounter(xoscar.Actor):  # type: ignore[misc]  # its Actor is untyped
    """Adds up."""

    def __init__(self) -> None:
        self.total = 0

    async def add(self, amount: int) -> int:
        """Add, and return the sum."""
        self.total += amount
        return self.total
