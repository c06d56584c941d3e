"""How a node learns where its peers listen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator


class Discovery(ABC):
    """Finds addresses. It neither connects nor judges: the cluster dials, and membership decides who is up."""

    @abstractmethod
    def addresses(self) -> AsyncIterator[frozenset[str]]:
        """Yield the complete set of peer addresses, ``host:port``, first at once and again at each change.

        An address that drops out is no longer dialled; a link that is already open stays. The node's own address
        may be among them: the cluster notices and skips it. The iterator runs supervised, and is asked again after
        an exception.
        """
