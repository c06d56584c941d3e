"""What becomes of caches on the stages: changes that wait for the next step, which takes them along. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.inference.prefixes import Prefix
from runtime.inference.protocol import Change


class CacheChanges:
    """Changes in the order in which the stages must make them."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._evicted: list[int] = []
        """Kept sequences that are dropped by those."""

    @property
    def drops(self) -> bool:
        """Whether there are caches to drop."""
        return any(change.length == 0 for change in self._changes)

    def begin_with(self, sequence: int, prefix: Prefix) -> None:
        """A sequence begins with a copy of what is kept of another one."""
        self._changes.append(Change(sequence, prefix.sequence, prefix.length))

    def keep(self, sequence: int, length: int) -> None:
        """A sequence leaves its micro-batch, and so many positions of it are kept."""
        self._changes.append(Change(sequence, sequence, length))

    def drop(self, sequence: int) -> None:
        """The cache of a sequence is dropped, wherever it is."""
        self._changes.append(Change(sequence))

    def evict(self, sequence: int) -> None:
        """The cache of a sequence that ended, and was kept, is dropped."""
        self.drop(sequence)
        self._evicted.append(sequence)

    def drop_again(self, changes: Iterable[Change]) -> None:
        """Drop what ``changes`` dropped: the step that took them along failed, and some stages may not know."""
        self._changes += [Change(change.sequence) for change in changes if change.length == 0]

    def take(self) -> tuple[tuple[Change, ...], tuple[int, ...]]:
        """Return the changes that no step has taken yet, and the kept sequences that end with them."""
        taken = tuple(self._changes), tuple(self._evicted)
        self._changes, self._evicted = [], []
        return taken
