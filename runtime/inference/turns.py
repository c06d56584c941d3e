"""Which prompts are taken in, how much of them at once, and when. Pure; the time is passed in.

A prompt is taken in by chunks, and several short ones at once; its last token is fed with the step that samples, as
mlx-lm does it. While others decode, prompts have a turn after each round of theirs, of so few tokens that it takes
about as long as that round, and take turns among themselves: so nobody waits for the whole of a long prompt.
"""

from __future__ import annotations

from collections import deque

from runtime.inference.capacity import Capacity
from runtime.inference.grouping import Batch, Grouping
from runtime.inference.pace import LEAST_CHUNK, Pace
from runtime.inference.protocol import Row
from runtime.inference.scheduled import ScheduledSequence

TOGETHER = 128
"""Positions of prompts, padded to one length, up to which they are taken in at once. The weights are read once for all
of them; with more, the products are as fast as they get, and the first of them would wait for the last."""


class PromptTurns:
    """Running sequences whose prompt is not all issued, and their turns between the steps of micro-batches."""

    def __init__(self, capacity: Capacity, grouping: Grouping) -> None:
        self._capacity = capacity
        self._grouping = grouping
        self._prompts: deque[ScheduledSequence] = deque()
        """The next one first."""
        self._flying = 0
        """Steps of prompts on their way."""
        self._round = 0
        """Decode steps since the last turn of prompts."""
        self._left = 0
        """Prompt tokens that may still be issued in the turn that began."""
        self._taken_in = 0
        """Prompt tokens so far."""
        self._pace = Pace()

    def add(self, state: ScheduledSequence) -> None:
        """A sequence has more prompt to take in; it waits for those that came before."""
        if state.fed == state.cached:
            self._pace.begins()
        self._prompts.append(state)

    def leave(self, state: ScheduledSequence) -> None:
        """Forget a sequence, if it is here."""
        if state in self._prompts:
            self._prompts.remove(state)

    def is_next(self) -> bool:
        """Whether the next step is one of prompts, as their turn goes on or one begins; else their turn is over."""
        if self._prompts and not self._left and self._may_begin():
            self._left, self._round = self._length(), 0
        if not self._prompts:
            self._left = 0
        return self._left > 0

    def take(self) -> tuple[Row, ...]:
        """Return a step's rows: the next chunk of the prompt that comes next, or several short prompts at once.

        Their sequences are not here any more, until they are added again.
        """
        rows = []
        left, decode = self._left, bool(self._grouping.batches)
        for _ in range(max(1, self._short_prompts())):
            state = self._prompts.popleft()
            start, stop = state.fed, min(state.fed + self._left, state.known - 1)
            rows.append(Row(state.number, start, state.known_tokens(start, stop)))
            state.fed = stop
            left -= stop - start
            decode = decode or stop == state.known - 1
        # Where nobody decodes, nobody waits for a turn's end.
        self._left = left if decode and left >= LEAST_CHUNK else 0
        self._flying += 1
        return tuple(rows)

    def taken_in(self, rows: tuple[Row, ...]) -> None:
        """A step of prompts came out."""
        self._flying -= 1
        self._taken_in += sum(len(row.tokens or ()) for row in rows)

    def decoding(self) -> None:
        """A step of a micro-batch is issued."""
        self._round += 1

    def decoded(self, batch: Batch, now: float) -> None:
        """A step of a micro-batch came out."""
        if batch.came is not None:
            self._pace.gap(now - batch.came, self._taken_in - batch.taken_in)
        batch.came, batch.taken_in = now, self._taken_in

    def _may_begin(self) -> bool:
        """Whether it is the turn of prompts: after a round of decoding, and when few steps are still on their way.

        Were they issued any earlier, the prompts that come meanwhile could not be taken in with them.
        """
        stages = self._capacity.stages
        if self._flying > stages or self._flying + self._grouping.flying > stages + 1:
            return False
        # A micro-batch has a gap without prompts once all have stepped in between.
        batches = len(self._grouping.batches)
        return self._round >= min(stages, batches) + (batches if self._pace.wants_calm else 0)

    def _length(self) -> int:
        """Return the tokens of a turn."""
        if not self._grouping.batches:
            return self._capacity.chunk
        return self._pace.chunk(self._capacity.chunk, len(self._prompts), self._grouping.sequences)

    def _short_prompts(self) -> int:
        """Return how many of the next prompts are so short that together they cost little more than one."""
        if not self._capacity.batches:
            return 0
        longest = count = 0
        for state in self._prompts:
            longest = max(longest, state.known - 1)
            if state.fed or (count + 1) * longest > min(self._left, TOGETHER):
                break
            count += 1
        return count
