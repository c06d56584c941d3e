"""Who has room in the KV cache, and who gives it up. Pure.

The KV cache has room for a number of positions. A sequence starts when what it holds by then fits, beside what the
others hold, padding included. If they outgrow it, the one that came last gives up its room. Whoever runs comes first:
the caches of ended sequences are given up as soon as their room is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.inference.capacity import CACHE_STEP, Capacity
from runtime.inference.grouping import Batch, Grouping
from runtime.inference.kept_caches import KeptCaches
from runtime.inference.scheduled import ScheduledSequence


class Room:
    """The positions of the KV cache, shared among sequences that are ``running``, and what is ``kept``."""

    def __init__(
        self,
        capacity: Capacity,
        running: Mapping[int, ScheduledSequence],
        grouping: Grouping,
        kept: KeptCaches,
    ) -> None:
        self._capacity = capacity
        self._running = running
        self._grouping = grouping
        self._kept = kept

    @property
    def positions(self) -> int:
        """Positions that are taken, kept, or promised to prompts."""
        prompts = (state for state in self._running.values() if state.batch is None)
        return (
            self._grouping.positions
            + sum(self._capacity.cache(state.known + 1) for state in prompts)
            + self._kept.positions
        )

    def free(self) -> int:
        """Return the positions that nobody has."""
        return self._capacity.positions - self.positions

    def make_for(self, state: ScheduledSequence) -> bool:
        """Return whether there is room for one more sequence, having given up what is kept until there is.

        What is kept of its own beginning it is promised, and takes where there is no room for both. A sequence that is
        alone has room in any case.
        """
        # Some room to grow in, or it would give up its place at once.
        needed = self._capacity.cache(state.known + CACHE_STEP)
        prefix = self._kept.find(state)
        pinned = self._kept.pinned
        spared = pinned if prefix is None else pinned | {prefix.sequence}
        if self._running and needed > self.free() + self._kept.positions:
            return False  # not even without anything that is kept
        while needed > self.free() and self._kept.evict(spared):
            pass
        lacking = needed - self.free()
        takes = prefix is not None and lacking > 0 and prefix.sequence not in pinned
        if prefix is not None and takes:
            lacking -= self._kept.size(prefix)
        if lacking > 0 and self._running:
            return False
        self._kept.promise(state, prefix, takes=takes)
        return True

    def wanted_for(self, batch: Batch) -> ScheduledSequence | None:
        """Give up what is kept until the next step of a micro-batch has room.

        Returns:
            The sequence that has to give up its place, if that is not enough; None if it is, or if only one is left.
        """
        growth = self._grouping.size(batch.rows, 1) - self._grouping.size(batch.rows)
        while growth > self.free():
            if not self._kept.evict(self._kept.pinned):
                holders = [state for state in self._running.values() if not state.is_exhausted]
                return max(holders, key=lambda state: state.order) if len(holders) > 1 else None
        return None
