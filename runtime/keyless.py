"""What a node without a cluster key dials: this machine alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

from loguru import logger

from runtime.config.sections import Address
from runtime.spi import Discovery


class LoopbackOnly(Discovery):
    """Passes on the addresses of this machine that another discovery finds, and says which ones it refuses.

    Whoever answers at an address may send work and read prompts. Only the key proves that it is a node of the cluster.
    """

    def __init__(self, found: Discovery) -> None:
        self._found = found

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        """Yield what the other one yields, less what other machines could answer at."""
        refused: frozenset[str] = frozenset()
        async for found in self._found.addresses():
            near = frozenset(address for address in found if Address.parse(address).is_loopback)
            for address in sorted(found - near - refused):
                logger.error(
                    "{} is not dialled: it is not on this machine, and without a key anything could answer there; set "
                    "cluster.key_file or cluster.key to the secret that all nodes share",
                    address,
                )
            refused = found - near
            yield near
