"""Which step runs next: the pure part of a driver. Values in, values out; the time is passed in.

Sequences that generate are gathered in micro-batches (:mod:`runtime.inference.grouping`), of which each decodes one
token a sequence in one forward pass. With a single stage the next step of a micro-batch may start before its tokens
are known, so that the device never waits for Python. Which sequences a micro-batch holds is said anew with every step.

Between their steps prompts are taken in (:mod:`runtime.inference.turns`).

A sequence starts when the KV cache has room for it (:mod:`runtime.inference.room`). One that has to give up its room
begins anew later, with the tokens that it has by then as part of its prompt. The one that came first is never held up
by others. A sequence may begin with the cache of another one that ended (:mod:`runtime.inference.kept_caches`).
"""

from __future__ import annotations

import itertools
from collections import deque

import msgspec

from runtime.inference.cache_changes import CacheChanges
from runtime.inference.capacity import Capacity
from runtime.inference.grouping import Batch, Grouping
from runtime.inference.kept_caches import KeptCaches
from runtime.inference.protocol import Row, Step
from runtime.inference.room import Room
from runtime.inference.scheduled import ScheduledSequence
from runtime.inference.turns import PromptTurns


class Progress(msgspec.Struct, frozen=True):
    """What became of a sampled token: its index in the completion, and why it is the last one if it is."""

    index: int
    reason: str | None
    cached: int
    """Tokens of the prompt that were in a cache already."""


class _Flight(msgspec.Struct):
    """A step on its way."""

    step: Step
    batch: Batch | None
    """None for prompts."""
    evicted: tuple[int, ...]
    """Kept sequences whose caches its changes drop."""


class Scheduler:
    """Admits sequences, and issues steps. Each step is answered once, by :meth:`done`."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._numbers = itertools.count(1)
        self._orders = itertools.count(1)
        self._running: dict[int, ScheduledSequence] = {}
        self._waiting: deque[int] = deque()
        self._sequences: dict[int, ScheduledSequence] = {}
        """All of them, running ones and waiting ones."""
        self._flights: dict[int, _Flight] = {}
        self._closed: list[int] = []
        """Sequences that the stages may forget."""
        self._changes = CacheChanges()
        self._grouping = Grouping(capacity)
        self._turns = PromptTurns(capacity, self._grouping)
        self._kept = KeptCaches(capacity, self._running, self._changes)
        self._room = Room(capacity, self._running, self._grouping, self._kept)

    @property
    def load(self) -> int:
        """Sequences running and waiting."""
        return len(self._sequences)

    @property
    def oldest(self) -> int | None:
        """Number of the step that is in flight longest; None if there is none."""
        return next(iter(self._flights), None)

    @property
    def sequences(self) -> list[int]:
        """Ids of all sequences, running ones first."""
        return [*self._running, *self._waiting]

    @property
    def positions(self) -> int:
        """Positions of the KV cache that are taken, kept, or promised to prompts."""
        return self._room.positions

    def is_full(self) -> bool:
        """Whether one more sequence would be refused."""
        return self.load >= self._capacity.sequences + self._capacity.waiting

    # -- sequences come and go --------------------------------------------------------------------------------------

    def add(
        self,
        sequence: int,
        prompt: tuple[int, ...],
        max_tokens: int,
        eos: tuple[int, ...],
        generated: tuple[int, ...] = (),
        owner: str = "",
    ) -> None:
        """Queue a sequence; :meth:`admit` starts it.

        What was ``generated`` of it elsewhere is taken in like a prompt, as that of a sequence which gave up its room.
        ``max_tokens`` counts it too. What is kept of another sequence of the same ``owner`` is not computed again.
        """
        self._sequences[sequence] = ScheduledSequence(
            sequence, next(self._orders), prompt, max_tokens, frozenset(eos), [*generated], owner
        )
        self._waiting.append(sequence)

    def admit(self) -> list[int]:
        """Start the sequences that there is room for; return those of them that the stages do not know.

        Nothing is issued for those before :meth:`opened`.
        """
        strangers = []
        while self._waiting and len(self._running) < self._capacity.sequences:
            sequence = self._waiting[0]
            state = self._sequences[sequence]
            if state.in_flight or not self._room.make_for(state):
                break
            self._waiting.popleft()
            self._running[sequence] = state
            if state.is_open:
                self._start(state)
            elif not state.is_opening:  # it may have given up its place before they knew it
                state.is_opening = True
                strangers.append(sequence)
        return strangers

    def opened(self, sequence: int) -> None:
        """The stages know a sequence now."""
        state = self._sequences.get(sequence)
        if state is None or state.is_open:
            return
        state.is_open = True
        if sequence in self._running:
            self._start(state)

    def sampled(self, sequence: int, position: int, token: int) -> Progress | None:
        """A token was chosen to follow ``position`` others; None if the sequence is gone. It is removed at its end."""
        state = self._sequences.get(sequence)
        if state is None or position != state.known:
            return None
        state.tokens.append(token)
        reason = "stop" if token in state.eos else "length" if len(state.tokens) >= state.max_tokens else None
        if reason is not None:
            self.remove(sequence)
        return Progress(len(state.tokens) - 1, reason, state.cached)

    def remove(self, sequence: int, *, keep: bool = True) -> None:
        """Forget a sequence, if it is here; its cache may be kept, unless something is wrong with it."""
        state = self._sequences.pop(sequence, None)
        if state is None:
            return
        if self._running.pop(sequence, None) is None:
            self._waiting.remove(sequence)
        elif keep and self._kept.is_worth_keeping(state):
            self._leave(state)
            self._kept.keep(state)
            return  # the stages may forget it when that is given up
        else:
            self._drop(state)
        self._closed.append(sequence)

    def closed(self) -> list[int]:
        """Return the sequences that the stages may forget by now; each is returned once."""
        closed, self._closed = self._closed, []
        return closed

    def forget_prefixes(self) -> None:
        """Keep nothing of what was kept so far."""
        self._kept.forget()

    # -- steps ------------------------------------------------------------------------------------------------------

    def issue(self) -> list[Step]:
        """Return the steps that can start now, in the order in which they must; they are in flight from then on.

        One without rows drops caches, where no other step comes to tell it.
        """
        steps = []
        while (step := self._next()) is not None:
            steps.append(step)
        if not self._flights and self._changes.drops:
            # Nobody is left whose next step would tell the stages what to drop.
            steps.append(self._launch(None, ()))
        return steps

    def done(self, number: int, now: float) -> tuple[int, ...]:
        """A step came out of the pipeline, or failed; return its sequences."""
        flight = self._flights.pop(number, None)
        if flight is None:
            return ()
        self._closed += flight.evicted
        rows = flight.step.rows
        for row in rows:
            state = self._sequences.get(row.sequence)
            if state is not None:
                state.in_flight -= 1
        if flight.batch is not None:
            flight.batch.in_flight -= 1
            self._turns.decoded(flight.batch, now)
            self._grouping.forget_if_empty(flight.batch)
        elif rows:  # else it only dropped caches
            self._turns.taken_in(rows)
        return tuple(row.sequence for row in rows)

    def failed(self, number: int, now: float) -> tuple[int, ...]:
        """A step failed; return its sequences. All others are computed anew.

        Nobody knows on which stages the step's changes were made, and what it left behind.
        """
        flight = self._flights.get(number)
        if flight is None:
            return ()
        self._changes.drop_again(flight.step.changes)
        lost = self.done(number, now)
        self.forget_prefixes()
        for state in sorted(self._running.values(), key=lambda state: state.order, reverse=True):
            self._begin_anew(state)
        return lost

    def _next(self) -> Step | None:
        return self._prompt_step() if self._turns.is_next() else self._decode_step()

    def _prompt_step(self) -> Step:
        rows = self._turns.take()
        for row in rows:
            self._go_on(self._running[row.sequence])
        return self._launch(None, rows)

    def _decode_step(self) -> Step | None:
        """Return the next step of the micro-batch that waited longest, if it may start."""
        stages = self._capacity.stages
        if self._grouping.flying >= max(stages, 2):
            return None
        for batch in list(self._grouping.batches.values()):
            if batch.in_flight and (stages > 1 or len(self._grouping.batches) > 1):
                continue
            if not batch.in_flight:
                self._grouping.balance(batch, self._room.free)
            while (last := self._room.wanted_for(batch)) is not None:
                self._begin_anew(last)
            for state in [state for state in batch.rows if state.is_exhausted]:
                self._grouping.leave(state)  # it waits for its last token, and for what becomes of its cache
            if not batch.rows:
                self._grouping.forget_if_empty(batch)
                continue
            rows = tuple(Row(state.number, state.fed, _next_token(state)) for state in batch.rows)
            for state in batch.rows:
                state.fed += 1
            self._grouping.launched(batch)
            self._turns.decoding()
            return self._launch(batch, rows)
        return None

    def _launch(self, batch: Batch | None, rows: tuple[Row, ...]) -> Step:
        for row in rows:
            self._sequences[row.sequence].in_flight += 1
        changes, evicted = self._changes.take()
        step = Step(next(self._numbers), None if batch is None else batch.name, rows, changes)
        self._flights[step.number] = _Flight(step, batch, evicted)
        return step

    # -- a running sequence -----------------------------------------------------------------------------------------

    def _start(self, state: ScheduledSequence) -> None:
        """Begin with what is kept of another sequence, if there is something."""
        self._kept.begin(state)
        self._go_on(state)

    def _go_on(self, state: ScheduledSequence) -> None:
        """Go on with a prompt, or to decoding once all but its last token is issued."""
        if state.fed < state.known - 1:
            self._turns.add(state)
        else:
            self._grouping.join(state, self._room.free)

    def _begin_anew(self, state: ScheduledSequence) -> None:
        """Take a running sequence's place; it waits for the next, before all who came later."""
        del self._running[state.number]
        self._drop(state)
        state.fed = 0
        self._waiting.appendleft(state.number)

    def _drop(self, state: ScheduledSequence) -> None:
        """Drop the cache of a sequence, wherever it is."""
        self._changes.drop(state.number)
        self._leave(state)

    def _leave(self, state: ScheduledSequence) -> None:
        """Take a sequence out of the prompts, or out of its micro-batch."""
        self._kept.give_back(state)
        self._turns.leave(state)
        self._grouping.leave(state)


def _next_token(state: ScheduledSequence) -> tuple[int, ...] | None:
    """Return the token that the next step is run over; None for that which the step before samples."""
    return state.known_tokens(state.fed, state.fed + 1) if state.fed < state.known else None
