"""What this machine has of memory: the parts of the budget that its ledger grants from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psutil

from runtime.cgroup import headroom
from runtime.spi import MemoryPolicy, NodeMemory


class Machine:
    """Reads this machine's memory."""

    def __init__(self, reserve: int, policy: MemoryPolicy, device: Callable[[], int | None]) -> None:
        """Set what the configuration says of it.

        Args:
            reserve: bytes to keep free.
            policy: what of the memory is granted.
            device: returns what the GPU's working set still has room for, None where there is no such bound.
        """
        self._reserve = reserve
        self._policy: MemoryPolicy = policy
        self._device = device
        self._last = self._read()

    def memory(self) -> NodeMemory:
        """Return what there is now."""
        # Reading it opens files, which fails while no file descriptor is free; the node outlives that.
        with suppress(OSError):
            self._last = self._read()
        return self._last

    def _read(self) -> NodeMemory:
        memory = psutil.virtual_memory()
        bounds = [bound for bound in (headroom(), self._device()) if bound is not None]
        return NodeMemory(
            total=memory.total,
            available=memory.available,
            reserve=self._reserve,
            reclaimable=max(0, memory.available - memory.free),
            swap=psutil.swap_memory().free if self._policy == "swap" else 0,
            limit=min(bounds, default=None),
            policy=self._policy,
        )
