"""A way to wait for the next change of something."""

from __future__ import annotations

import asyncio


class Changes:
    """Counts changes and wakes those who wait for one. Nobody who compares counts can miss any."""

    def __init__(self) -> None:
        self.count = 0
        """How many there have been."""
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        """Something has changed."""
        self.count += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def after(self, count: int) -> int:
        """Wait until there have been more than ``count`` changes; return how many there have been."""
        while self.count <= count:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next)
        return self.count
