"""Caches of ended sequences: which are kept, which sequence begins with one, and when it is given up. Pure.

:mod:`runtime.inference.prefixes` knows their tokens; here is what sequences that come and go do with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from runtime.inference.cache_changes import CacheChanges
from runtime.inference.capacity import Capacity
from runtime.inference.prefixes import LEAST_KEPT, Prefix, Prefixes
from runtime.inference.scheduled import ScheduledSequence


class KeptCaches:
    """What is kept, for the sequences that are ``running`` and those that come."""

    def __init__(self, capacity: Capacity, running: Mapping[int, ScheduledSequence], changes: CacheChanges) -> None:
        self._capacity = capacity
        self._running = running
        self._changes = changes
        self._prefixes = Prefixes(trims=capacity.trims)

    @property
    def positions(self) -> int:
        """Positions of the KV cache that all take."""
        return self._prefixes.positions(self._capacity.cache)

    @property
    def pinned(self) -> frozenset[int]:
        """The kept sequences that running ones are about to copy."""
        return frozenset(state.prefix.sequence for state in self._running.values() if state.prefix is not None)

    def size(self, prefix: Prefix) -> int:
        """Return the positions that the kept sequence takes of which this is a beginning."""
        return self._capacity.cache(self._prefixes.length(prefix.sequence))

    def find(self, state: ScheduledSequence) -> Prefix | None:
        """Return the longest beginning of a sequence that is kept; it counts as used."""
        if not self._capacity.keeps:
            return None
        return self._prefixes.find(state.owner, state.known_tokens(0, state.known))

    def promise(self, state: ScheduledSequence, prefix: Prefix | None, *, takes: bool) -> None:
        """Have a sequence begin with what :meth:`find` returned. If it ``takes`` that, nobody else finds it."""
        if prefix is not None and takes:
            # It is dropped once the copy is made, which shares its memory until it grows.
            self._prefixes.remove(prefix.sequence)
        state.prefix, state.takes = prefix, takes

    def begin(self, state: ScheduledSequence) -> None:
        """Copy what a sequence was promised, if it was."""
        prefix, state.prefix = state.prefix, None
        if prefix is not None:
            self._changes.begin_with(state.number, prefix)
            state.fed = state.cached = prefix.length
            if state.takes:
                self._changes.evict(prefix.sequence)

    def give_back(self, state: ScheduledSequence) -> None:
        """Let go of what was promised and not copied; if it was to be given up for that, it is given up now."""
        prefix, state.prefix = state.prefix, None
        if prefix is not None and state.takes:
            self._changes.evict(prefix.sequence)

    def is_worth_keeping(self, state: ScheduledSequence) -> bool:
        """Whether the cache of a running sequence that ends may be of use to others."""
        # A step may have run over a token that was never heard of; only a cache that can be cut gets rid of it.
        certain = self._capacity.trims or state.fed <= state.known
        return self._capacity.keeps and certain and min(state.fed, state.known) >= LEAST_KEPT

    def keep(self, state: ScheduledSequence) -> None:
        """Keep the cache of a sequence that ended, and give up those that hold nothing beside it."""
        tokens = state.known_tokens(0, min(state.fed, state.known))
        self._changes.keep(state.number, len(tokens))
        for other in self._prefixes.keep(state.number, state.owner, tokens, self.pinned):
            self._changes.evict(other)

    def evict(self, spared: Set[int]) -> bool:
        """Give up what was used longest ago and is not ``spared``; return whether there was something."""
        sequence = self._prefixes.evict(spared)
        if sequence is not None:
            self._changes.evict(sequence)
        return sequence is not None

    def forget(self) -> None:
        """Give up all, promised or not."""
        for state in self._running.values():
            self.give_back(state)
        while self.evict(frozenset()):
            pass
