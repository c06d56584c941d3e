"""The peers of the configuration, which never change while the node runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from runtime.spi import Discovery


class StaticDiscovery(Discovery):
    """Yields one set, and then nothing more for as long as it is asked."""

    def __init__(self, peers: Iterable[str]) -> None:
        self._peers = frozenset(peers)

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        """Yield the configured addresses once; the iterator then waits, because its end would mean a failure."""
        yield self._peers
        await asyncio.Event().wait()
