"""Which sequences share a micro-batch, of which each decodes one token a sequence in one forward pass. Pure.

There is one micro-batch for each stage, so that all stages work: while one is in the second stage, another is in the
first. A micro-batch is padded to its longest sequence, so one that is far longer than others gets its own, as long as
it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import msgspec

from runtime.inference.capacity import Capacity
from runtime.inference.scheduled import ScheduledSequence

PADDING = 4096
"""Positions of padding that are too many for a sequence to share a micro-batch with far shorter ones: reading that
many costs more than reading the weights once more."""


class Batch(msgspec.Struct, eq=False):
    """A micro-batch."""

    name: int
    rows: list[ScheduledSequence]
    in_flight: int = 0
    """Steps on their way."""
    came: float | None = None
    """When a step of it came out last."""
    taken_in: int = 0
    """Prompt tokens that had been taken in by then."""


class Grouping:
    """The micro-batches.

    Where it is asked for, ``free`` tells how many positions of the KV cache nobody has: padding takes positions too.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._names = itertools.count(1)
        self.batches: dict[int, Batch] = {}
        """By name; the one that waited longest first."""

    @property
    def sequences(self) -> int:
        """How many are in micro-batches."""
        return sum(len(batch.rows) for batch in self.batches.values())

    @property
    def flying(self) -> int:
        """Steps of micro-batches on their way."""
        return sum(batch.in_flight for batch in self.batches.values())

    @property
    def positions(self) -> int:
        """Positions of the KV cache that all micro-batches take."""
        return sum(self.size(batch.rows) for batch in self.batches.values())

    def size(self, rows: list[ScheduledSequence], more: int = 0) -> int:
        """Return the positions of a micro-batch that holds ``more`` positions a sequence than now."""
        if not rows:
            return 0
        longest = max(state.fed for state in rows)
        return len(rows) * self._capacity.cache(longest + more)

    def join(self, state: ScheduledSequence, free: Callable[[], int]) -> None:
        """Put a sequence into the smallest micro-batch that it suits, else into one of its own."""
        if len(self.batches) >= self._capacity.stages and self._capacity.batches:
            for batch in self._smallest_first(self.batches):
                if self._suits(batch.rows, [state], PADDING, free):
                    state.batch = batch.name
                    batch.rows.append(state)
                    return
        batch = self._new()
        state.batch = batch.name
        batch.rows.append(state)

    def leave(self, state: ScheduledSequence) -> None:
        """Take a sequence out of its micro-batch, if it is in one."""
        name, state.batch = state.batch, None
        if name is not None:
            batch = self.batches[name]
            batch.rows.remove(state)
            self.forget_if_empty(batch)

    def balance(self, batch: Batch, free: Callable[[], int]) -> None:
        """Even out the micro-batches: those that sequences left, and those that were too different to share one.

        No step of ``batch`` may be in flight.
        """
        if not self._capacity.batches:
            return
        stages = self._capacity.stages
        if len(self.batches) < stages and len(batch.rows) > 1:
            self._move(batch, self._new(), len(batch.rows) // 2)
        elif len(self.batches) > stages:
            for other in self._smallest_first(self.batches.keys() - {batch.name}):
                if self._suits(other.rows, batch.rows, PADDING // 2, free):
                    self._move(batch, other, len(batch.rows))
                    return
        else:
            smallest = min(self.batches.values(), key=lambda each: len(each.rows))
            surplus = (len(batch.rows) - len(smallest.rows)) // 2
            if surplus and self._suits(smallest.rows, batch.rows[-surplus:], PADDING // 2, free):
                self._move(batch, smallest, surplus)

    def launched(self, batch: Batch) -> None:
        """A step of it is on its way; the others have waited longer from now on."""
        batch.in_flight += 1
        self.batches[batch.name] = self.batches.pop(batch.name)

    def forget_if_empty(self, batch: Batch) -> None:
        """Forget a micro-batch that nobody is in, once its steps have come out."""
        if not batch.rows and not batch.in_flight:
            self.batches.pop(batch.name, None)

    def _new(self) -> Batch:
        name = next(self._names)
        self.batches[name] = batch = Batch(name, [])
        return batch

    def _smallest_first(self, names: Iterable[int]) -> list[Batch]:
        return sorted((self.batches[name] for name in names), key=lambda batch: len(batch.rows))

    def _suits(
        self,
        rows: list[ScheduledSequence],
        more: list[ScheduledSequence],
        padding: int,
        free: Callable[[], int],
    ) -> bool:
        """Whether the cache has room for both together, with no more than so much padding beside what each has."""
        added = self.size([*rows, *more]) - self.size(rows) - self.size(more)
        return added <= min(padding, free())

    @staticmethod
    def _move(batch: Batch, to: Batch, count: int) -> None:
        """Move the last ``count`` sequences, of which no step is in flight."""
        moved = batch.rows[len(batch.rows) - count :]
        del batch.rows[len(batch.rows) - count :]
        to.rows += moved
        for state in moved:
            state.batch = to.name
