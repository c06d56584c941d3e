"""Which addresses to dial: those that discovery names, and those that peers have told of."""

from __future__ import annotations

from runtime.errors import ConfigError
from runtime.wire import parse_address

FORGOTTEN = 3600.0
"""Seconds after which an address that a peer told of, and nobody was linked at since, is dropped."""
MOST_LEARNT = 256


class AddressBook:
    """Addresses, with the time each learnt one was last heard of. Times are passed in."""

    def __init__(self) -> None:
        self.discovered: frozenset[str] = frozenset()
        """What discovery names now."""
        self._learnt: dict[str, float] = {}

    def wanted(self) -> frozenset[str]:
        """Every address to dial."""
        return self.discovered | self._learnt.keys()

    def learn(self, addresses: tuple[str, ...], now: float) -> bool:
        """Take addresses from a peer, but for malformed ones and those beyond the bound; return whether any is new."""
        known = len(self._learnt)
        for address in addresses:
            if address in self._learnt or (len(self._learnt) < MOST_LEARNT and _is_dialable(address)):
                self._learnt[address] = now
        return len(self._learnt) > known

    def linked(self, address: str, now: float) -> None:
        """Take note that a peer that listens here is linked, so that it is dialled when it is lost."""
        if address:
            self.learn((address,), now)

    def forget(self, now: float) -> None:
        """Drop what has been of no use for long."""
        self._learnt = {address: heard for address, heard in self._learnt.items() if now - heard < FORGOTTEN}


def _is_dialable(address: str) -> bool:
    try:
        host, port = parse_address(address)
    except ConfigError:
        return False
    return bool(host) and port > 0
