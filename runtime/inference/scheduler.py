"""Which step runs next: the pure part of a driver. Values in, values out; the time is passed in.

Sequences that generate are gathered in micro-batches, of which each decodes one token a sequence in one forward pass.
There is one micro-batch for each stage, so that all stages work: while one is in the second stage, another is in the
first. With a single stage the next step of a micro-batch may start before its tokens are known, so that the device
never waits for Python. Which sequences a micro-batch holds is said anew with every step.

A prompt is taken in by chunks, and several short ones at once; its last token is fed with the step that samples, as
mlx-lm does it. While others decode, prompts have a turn after each round of theirs, of so few tokens that it takes
about as long as that round, and take turns among themselves: so nobody waits for the whole of a long prompt.

The KV cache has room for a number of positions. A sequence starts when what it holds by then fits, beside what the
others hold, padding included. If they outgrow it, the one that came last gives up its room and begins anew later,
with the tokens that it has by then as part of its prompt. The one that came first is never held up by others.

What room is left holds the caches of sequences that ended, for prompts that begin like them
(:mod:`runtime.inference.prefixes`). Whoever runs comes first: kept caches are given up as soon as room is wanted.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from runtime.inference.pace import LEAST_CHUNK, Pace
from runtime.inference.prefixes import LEAST_KEPT, Prefix, Prefixes
from runtime.inference.protocol import Change, Row, Step

CACHE_STEP = 256
"""Positions by which mlx-lm's caches grow."""
TOGETHER = 256
"""Positions of prompts, padded to one length, up to which they are taken in at once. The weights are read once for all
of them; with more, the products are as fast as they get, and the first of them would wait for the last."""
PADDING = 4096
"""Positions of padding that are too many for a sequence to share a micro-batch with far shorter ones: reading that
many costs more than reading the weights once more."""


def whole_steps(tokens: int) -> int:
    """Return the positions of a cache that grew to hold ``tokens``."""
    return -(-tokens // CACHE_STEP) * CACHE_STEP


class Capacity(msgspec.Struct, frozen=True):
    """What the stages can take at once."""

    stages: int
    sequences: int
    """That run at once."""
    waiting: int
    """That may wait beyond those."""
    chunk: int
    """Prompt tokens a step, at most."""
    context: int
    """Tokens of one sequence, at most."""
    positions: int
    """Of the KV cache, for all sequences; at least the context."""
    batches: bool = True
    """Whether the model takes several sequences in one forward pass."""
    keeps: bool = False
    """Whether caches of ended sequences are kept while there is room."""
    trims: bool = False
    """Whether caches can be cut to any shorter length."""

    def cache(self, tokens: int) -> int:
        """Return the positions that the cache of one sequence with ``tokens`` takes: it grows by steps."""
        return min(tokens + CACHE_STEP, whole_steps(self.context))


class Progress(msgspec.Struct, frozen=True):
    """What became of a sampled token: its index in the completion, and why it is the last one if it is."""

    index: int
    reason: str | None
    cached: int
    """Tokens of the prompt that were in a cache already."""


class _Sequence(msgspec.Struct):
    order: int
    """Sequences are numbered as they come."""
    prompt: tuple[int, ...]
    max_tokens: int
    eos: frozenset[int]
    tokens: list[int]
    """Sampled so far."""
    owner: str
    prefix: Prefix | None = None
    """What of a kept sequence its cache will begin with."""
    takes: bool = False
    """Whether that one is given up for it."""
    cached: int = 0
    """Positions that it had from there."""
    fed: int = 0
    """Positions for which steps were issued since the cache was empty."""
    in_flight: int = 0
    batch: int | None = None
    is_open: bool = False
    """Whether the stages know it."""
    is_opening: bool = False
    """Whether they are being told."""

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.tokens)

    def known_tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Return tokens of the prompt and the completion, as far as they are known."""
        split = len(self.prompt)
        return (*self.prompt[start:stop], *self.tokens[max(0, start - split) : max(0, stop - split)])

    @property
    def is_exhausted(self) -> bool:
        """Whether a step was issued for each token that it may have."""
        return self.fed + 1 - len(self.prompt) >= self.max_tokens


class _Batch(msgspec.Struct):
    rows: list[int]
    in_flight: int = 0
    came: float | None = None
    """When a step of it came out last."""
    taken_in: int = 0
    """Prompt tokens that had been taken in by then."""


class _Flight(msgspec.Struct):
    """A step on its way."""

    batch: int | None
    rows: tuple[int, ...]
    prompt_tokens: int
    changes: tuple[Change, ...]
    evicted: tuple[int, ...]
    """Kept sequences whose caches those drop."""


class Scheduler:
    """Admits sequences, and issues steps. Each step is answered once, by :meth:`done`."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._numbers = itertools.count(1)
        self._orders = itertools.count(1)
        self._names = itertools.count(1)
        self._running: dict[int, _Sequence] = {}
        self._waiting: deque[int] = deque()
        self._sequences: dict[int, _Sequence] = {}
        """All of them, running ones and waiting ones."""
        self._prompts: deque[int] = deque()
        """Running sequences whose prompt is not all issued, the next one first."""
        self._batches: dict[int, _Batch] = {}
        """By name; the one that waited longest first."""
        self._flights: dict[int, _Flight] = {}
        self._changes: list[Change] = []
        """Of caches on the stages, to go with the next step."""
        self._evicted: list[int] = []
        """Kept sequences that are dropped by those."""
        self._closed: list[int] = []
        """Sequences that the stages may forget."""
        self._prefixes = Prefixes(trims=capacity.trims)
        self._round = 0
        """Decode steps since the last turn of prompts."""
        self._turn = 0
        """Prompt tokens that may still be issued in the turn that began."""
        self._taken_in = 0
        """Prompt tokens so far."""
        self._pace = Pace()

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
        return (
            sum(self._size(batch.rows) for batch in self._batches.values())
            + sum(self._capacity.cache(state.known + 1) for state in self._running.values() if state.batch is None)
            + self._prefixes.positions(self._capacity.cache)
        )

    def is_full(self) -> bool:
        """Whether one more sequence would be refused."""
        return self.load >= self._capacity.sequences + self._capacity.waiting

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
        self._sequences[sequence] = _Sequence(
            next(self._orders), prompt, max_tokens, frozenset(eos), [*generated], owner
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
            if state.in_flight or not self._has_room(state):
                break
            self._waiting.popleft()
            self._running[sequence] = state
            if state.is_open:
                self._start(sequence, state)
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
            self._start(sequence, state)

    def issue(self) -> list[Step]:
        """Return the steps that can start now, in the order in which they must; they are in flight from then on.

        One without rows drops caches, where no other step comes to tell it.
        """
        steps = []
        while (step := self._next()) is not None:
            steps.append(step)
        if not self._flights and any(change.length == 0 for change in self._changes):
            # Nobody is left whose next step would tell the stages what to drop.
            steps.append(self._launch(None, ()))
        return steps

    def done(self, number: int, now: float) -> tuple[int, ...]:
        """A step came out of the pipeline, or failed; return its sequences."""
        flight = self._flights.pop(number, None)
        if flight is None:
            return ()
        self._closed += flight.evicted
        for sequence in flight.rows:
            state = self._sequences.get(sequence)
            if state is not None:
                state.in_flight -= 1
        if flight.batch is None:
            self._taken_in += flight.prompt_tokens
        else:
            batch = self._batches[flight.batch]
            batch.in_flight -= 1
            if batch.came is not None:
                self._pace.gap(now - batch.came, self._taken_in - batch.taken_in)
            batch.came, batch.taken_in = now, self._taken_in
            self._forget_if_empty(flight.batch)
        return flight.rows

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
        elif keep and self._is_worth_keeping(state):
            self._leave(sequence, state)
            tokens = state.known_tokens(0, min(state.fed, state.known))
            self._changes.append(Change(sequence, sequence, len(tokens)))
            for other in self._prefixes.keep(sequence, state.owner, tokens, self._pinned()):
                self._drop_kept(other)
            return
        else:
            self._drop(sequence, state)
        self._closed.append(sequence)

    def closed(self) -> list[int]:
        """Return the sequences that the stages may forget by now; each is returned once."""
        closed, self._closed = self._closed, []
        return closed

    def failed(self, number: int, now: float) -> tuple[int, ...]:
        """A step failed; return its sequences. All others are computed anew.

        Nobody knows on which stages the step's changes were made, and what it left behind.
        """
        flight = self._flights.get(number)
        if flight is None:
            return ()
        self._changes += [Change(change.sequence) for change in flight.changes if change.length == 0]
        lost = self.done(number, now)
        self.forget_prefixes()
        for sequence in sorted(self._running, key=lambda each: self._running[each].order, reverse=True):
            self._begin_anew(sequence)
        return lost

    def forget_prefixes(self) -> None:
        """Keep nothing of what was kept so far."""
        for state in self._running.values():
            self._give_back(state)
        while (sequence := self._prefixes.evict(frozenset())) is not None:
            self._drop_kept(sequence)

    # -- what runs next ---------------------------------------------------------------------------------------------

    def _next(self) -> Step | None:
        if self._prompts and not self._turn and self._may_turn():
            self._turn, self._round = self._chunk(), 0
        if self._turn and self._prompts:
            return self._prompt_step()
        self._turn = 0
        step = self._decode_step()
        if step is not None:
            self._round += 1
        return step

    def _may_turn(self) -> bool:
        """Whether it is the turn of prompts: after a round of decoding, and when few are still on their way."""
        stages = self._capacity.stages
        if sum(flight.batch is None for flight in self._flights.values()) > stages:
            return False
        return self._round >= min(stages, len(self._batches))

    def _prompt_step(self) -> Step:
        """Return the next chunk of the prompt that comes next, or several short prompts at once."""
        together = self._short_prompts()
        rows = []
        for _ in range(max(1, together)):
            sequence = self._prompts.popleft()
            state = self._running[sequence]
            start, stop = state.fed, min(state.fed + self._turn, state.known - 1)
            rows.append(Row(sequence, start, state.known_tokens(start, stop)))
            state.fed = stop
            self._begin(sequence, state)
        tokens = sum(len(row.tokens or ()) for row in rows)
        left = self._turn - tokens
        self._turn = left if self._batches and left >= LEAST_CHUNK else 0
        return self._launch(None, tuple(rows), tokens)

    def _short_prompts(self) -> int:
        """Return how many of the next prompts are so short that together they cost little more than one."""
        if not self._capacity.batches:
            return 0
        longest = count = 0
        for sequence in self._prompts:
            state = self._running[sequence]
            longest = max(longest, state.known - 1)
            if state.fed or (count + 1) * longest > min(self._turn, TOGETHER):
                break
            count += 1
        return count

    def _chunk(self) -> int:
        if not self._batches:
            return self._capacity.chunk
        running = sum(len(batch.rows) for batch in self._batches.values())
        return self._pace.chunk(self._capacity.chunk, len(self._prompts), running)

    def _decode_step(self) -> Step | None:
        """Return the next step of the micro-batch that waited longest, if it may start."""
        stages = self._capacity.stages
        flying = sum(batch.in_flight for batch in self._batches.values())
        if flying >= max(stages, 2):
            return None
        for name, batch in list(self._batches.items()):
            if batch.in_flight and (stages > 1 or len(self._batches) > 1):
                continue
            if not batch.in_flight:
                self._balance(name, batch)
            self._make_room(partial(self._grown, name))
            if name not in self._batches:
                continue
            rows = [(sequence, self._running[sequence]) for sequence in batch.rows]
            for sequence, state in rows:
                if state.is_exhausted:  # it waits for its last token, and for what becomes of its cache
                    batch.rows.remove(sequence)
                    state.batch = None
            rows = [(sequence, state) for sequence, state in rows if state.batch == name]
            if not rows:
                self._forget_if_empty(name)
                continue
            step_rows = tuple(Row(sequence, state.fed, self._token(state)) for sequence, state in rows)
            for _, state in rows:
                state.fed += 1
            batch.in_flight += 1
            self._batches[name] = self._batches.pop(name)
            return self._launch(name, step_rows)
        return None

    @staticmethod
    def _token(state: _Sequence) -> tuple[int, ...] | None:
        return state.known_tokens(state.fed, state.fed + 1) if state.fed < state.known else None

    def _launch(self, batch: int | None, rows: tuple[Row, ...], prompt_tokens: int = 0) -> Step:
        number = next(self._numbers)
        for row in rows:
            self._sequences[row.sequence].in_flight += 1
        changes, self._changes = tuple(self._changes), []
        evicted, self._evicted = tuple(self._evicted), []
        self._flights[number] = _Flight(batch, tuple(row.sequence for row in rows), prompt_tokens, changes, evicted)
        return Step(number, batch, rows, changes)

    # -- who is together with whom ----------------------------------------------------------------------------------

    def _start(self, sequence: int, state: _Sequence) -> None:
        """Begin with what is kept of another sequence, if there is something."""
        prefix, state.prefix = state.prefix, None
        if prefix is not None:
            self._changes.append(Change(sequence, prefix.sequence, prefix.length))
            state.fed = state.cached = prefix.length
            if state.takes:
                self._drop_kept(prefix.sequence)
        self._begin(sequence, state)

    def _begin(self, sequence: int, state: _Sequence) -> None:
        """Go on with a prompt, or to decoding once all but its last token is issued."""
        if state.fed < state.known - 1:
            self._prompts.append(sequence)
        else:
            self._join(sequence, state)

    def _join(self, sequence: int, state: _Sequence) -> None:
        """Put a sequence into the smallest micro-batch that it suits, else into one of its own."""
        names = sorted(self._batches, key=lambda name: len(self._batches[name].rows))
        if len(names) >= self._capacity.stages and self._capacity.batches:
            for name in names:
                if self._suits(self._batches[name].rows, [sequence], PADDING):
                    state.batch = name
                    self._batches[name].rows.append(sequence)
                    return
        state.batch = next(self._names)
        self._batches[state.batch] = _Batch([sequence])

    def _suits(self, rows: list[int], more: list[int], padding: int) -> bool:
        """Whether the cache has room for both together, with no more than so much padding beside what each has."""
        together = self._size([*rows, *more])
        added = together - self._size(rows) - self._size(more)
        free = self._capacity.positions - self.positions
        return added <= min(padding, free)

    def _balance(self, name: int, batch: _Batch) -> None:
        """Even out the micro-batches: those that sequences left, and those that were too different to share one."""
        if not self._capacity.batches:
            return
        stages = self._capacity.stages
        if len(self._batches) < stages and len(batch.rows) > 1:
            other = next(self._names)
            self._batches[other] = _Batch([])
            self._move(batch, other, len(batch.rows) // 2)
            return
        smallest = min(self._batches, key=lambda each: len(self._batches[each].rows))
        if len(self._batches) > stages:
            others = sorted(self._batches.keys() - {name}, key=lambda each: len(self._batches[each].rows))
            for other in others:
                if self._suits(self._batches[other].rows, batch.rows, PADDING // 2):
                    self._move(batch, other, len(batch.rows))
                    return
        elif len(batch.rows) - len(self._batches[smallest].rows) > 1:
            surplus = (len(batch.rows) - len(self._batches[smallest].rows)) // 2
            if self._suits(self._batches[smallest].rows, batch.rows[-surplus:], PADDING // 2):
                self._move(batch, smallest, surplus)

    def _move(self, batch: _Batch, to: int, count: int) -> None:
        """Move the last ``count`` sequences, of which no step is in flight."""
        moved = batch.rows[len(batch.rows) - count :]
        del batch.rows[len(batch.rows) - count :]
        self._batches[to].rows += moved
        for sequence in moved:
            self._running[sequence].batch = to

    def _forget_if_empty(self, name: int) -> None:
        batch = self._batches[name]
        if not batch.rows and not batch.in_flight:
            del self._batches[name]

    # -- room in the KV cache ---------------------------------------------------------------------------------------

    def _has_room(self, state: _Sequence) -> bool:
        """Find what is kept of a sequence's beginning, and give up what else is kept until there is room for it."""
        capacity = self._capacity
        # Some room to grow in, or it would give up its place at once.
        needed = capacity.cache(state.known + CACHE_STEP)
        known = state.known_tokens(0, state.known)
        prefix = self._prefixes.find(state.owner, known) if capacity.keeps else None
        pinned = self._pinned()
        spared = pinned if prefix is None else pinned | {prefix.sequence}
        if self._running and self.positions + needed - self._prefixes.positions(capacity.cache) > capacity.positions:
            return False  # not even without anything that is kept
        while self.positions + needed > capacity.positions and (other := self._prefixes.evict(spared)) is not None:
            self._drop_kept(other)
        lacking = self.positions + needed - capacity.positions
        takes = prefix is not None and lacking > 0 and prefix.sequence not in pinned
        if prefix is not None and takes:
            lacking -= capacity.cache(self._prefixes.length(prefix.sequence))
        if lacking > 0 and self._running:
            return False
        if prefix is not None and takes:
            # It is dropped once the copy is made, which shares its memory until it grows.
            self._prefixes.remove(prefix.sequence)
        state.prefix, state.takes = prefix, takes
        return True

    def _pinned(self) -> frozenset[int]:
        """Return the kept sequences that admitted ones are about to copy."""
        return frozenset(state.prefix.sequence for state in self._running.values() if state.prefix is not None)

    def _is_worth_keeping(self, state: _Sequence) -> bool:
        # A step may have run over a token that was never heard of; only a cache that can be cut gets rid of it.
        certain = self._capacity.trims or state.fed <= state.known
        return self._capacity.keeps and certain and min(state.fed, state.known) >= LEAST_KEPT

    def _size(self, rows: list[int], more: int = 0) -> int:
        """Return the positions of a micro-batch that holds ``more`` positions a sequence than now."""
        if not rows:
            return 0
        longest = max(self._running[sequence].fed for sequence in rows)
        return len(rows) * self._capacity.cache(longest + more)

    def _grown(self, name: int) -> int:
        rows = self._batches[name].rows if name in self._batches else []
        return self.positions + self._size(rows, 1) - self._size(rows)

    def _make_room(self, needed: Callable[[], int]) -> None:
        """Give up what is kept, then the room of those who came last, until what is needed fits or one is left."""
        while needed() > self._capacity.positions:
            kept = self._prefixes.evict(self._pinned())
            if kept is not None:
                self._drop_kept(kept)
                continue
            holders = [sequence for sequence, state in self._running.items() if not state.is_exhausted]
            if len(holders) < 2:
                return
            self._begin_anew(max(holders, key=lambda sequence: self._running[sequence].order))

    def _begin_anew(self, sequence: int) -> None:
        """Take a running sequence's place; it waits for the next, before all who came later."""
        state = self._running.pop(sequence)
        self._drop(sequence, state)
        state.fed = 0
        self._waiting.appendleft(sequence)

    def _give_back(self, state: _Sequence) -> None:
        """Let go of a kept sequence that was to be copied; if it was to be given up for it, that is done now."""
        prefix, state.prefix = state.prefix, None
        if prefix is not None and state.takes:
            self._drop_kept(prefix.sequence)

    def _drop(self, sequence: int, state: _Sequence) -> None:
        """Drop the cache of a sequence, wherever it is."""
        self._changes.append(Change(sequence))
        self._leave(sequence, state)

    def _drop_kept(self, sequence: int) -> None:
        self._changes.append(Change(sequence))
        self._evicted.append(sequence)

    def _leave(self, sequence: int, state: _Sequence) -> None:
        """Take a sequence out of the prompts, or out of its micro-batch."""
        self._give_back(state)
        if sequence in self._prompts:
            self._prompts.remove(sequence)
        name, state.batch = state.batch, None
        if name is not None:
            self._batches[name].rows.remove(sequence)
            self._forget_if_empty(name)
