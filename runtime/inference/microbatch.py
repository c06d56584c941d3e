"""Sequences that decode in one forward pass: their joint cache on one stage. Runs on the compute thread."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import mlx.core as mx

from runtime.errors import ProtocolError
from runtime.inference.caches import extended, extracted, filtered, merged
from runtime.inference.protocol import OpenSequence
from runtime.inference.sampling import TokenSampler
from runtime.inference.shard import Shard


class StageSequence:
    """What a stage keeps of one sequence. Arrays are made on first use: only the compute thread may make them."""

    def __init__(self, opened: OpenSequence) -> None:
        self.opened = opened
        self.position = 0
        self.cache: list[Any] | None = None
        """Its own; None before its first step, and while a micro-batch has it."""
        self.batch: MicroBatch | None = None
        self.sampler: TokenSampler | None = None
        self.last: tuple[mx.array, int] | None = None
        """The tokens that a step sampled, and which of them is this sequence's; on the last stage only."""


class MicroBatch:
    """The cache of some sequences. That of a single one is the model's own, so that it runs as if alone."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.rows: list[StageSequence] = []
        self.cache: list[Any] = []

    def hold(self, rows: Sequence[StageSequence]) -> None:
        """Make ``rows`` the sequences of this micro-batch, in this order. Others keep caches of their own.

        Raises:
            ModelUnsupported: the model takes one sequence at a time, and these are more.
        """
        if self.rows == list(rows):
            return
        self.leave([row for row in self.rows if row not in rows])
        self._keep([row for row in rows if row.batch is self])
        self._take([row for row in rows if row.batch is not self])
        if self.rows != list(rows):
            filtered(self.cache, [self.rows.index(row) for row in rows])
            self.rows = list(rows)

    def drop(self, sequences: Set[int]) -> None:
        """Forget sequences, and their caches."""
        self._keep([row for row in self.rows if row.opened.sequence not in sequences])

    def leave(self, rows: Sequence[StageSequence]) -> None:
        """Take sequences out, which have caches of their own from then on.

        All at once: what the others hold is copied once, and not once for each that leaves.
        """
        for row in rows:
            row.cache = self.cache if len(self.rows) == 1 else extracted(self.cache, self.rows.index(row))
        self._keep([row for row in self.rows if row not in rows])

    def _keep(self, rows: list[StageSequence]) -> None:
        if rows == self.rows:
            return
        indices = [self.rows.index(row) for row in rows]
        for row in self.rows:
            row.batch = None
        if not rows:
            self.cache = []
        elif len(rows) == 1:
            self.cache = extracted(self.cache, indices[0])
        else:
            filtered(self.cache, indices)
        for row in rows:
            row.batch = self
        self.rows = rows

    def _take(self, rows: list[StageSequence]) -> None:
        if not rows:
            return
        for batch in {id(row.batch): row.batch for row in rows if row.batch is not None}.values():
            batch.leave([row for row in rows if row.batch is batch])
        caches = [self._cache_of(row) for row in rows]
        if not self.rows:
            self.cache = caches[0] if len(caches) == 1 else merged(caches)
        elif len(self.rows) == 1:
            self.cache = merged([self.cache, *caches])
        else:
            extended(self.cache, merged(caches))
        for row in rows:
            row.batch, row.cache = self, None
        self.rows = [*self.rows, *rows]

    def _cache_of(self, row: StageSequence) -> list[Any]:
        if row.cache is None:
            if row.position:
                raise ProtocolError(f"the cache of sequence {row.opened.sequence} was dropped at {row.position} tokens")
            row.cache = self._shard.new_cache()
        return row.cache
