"""A scheduler without stages: every step that it issues is checked, in an order that a test chooses."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from runtime.inference.capacity import Capacity
from runtime.inference.protocol import Change, Step
from runtime.inference.scheduler import Scheduler

EOS = 7
SMALL = Capacity(stages=1, sequences=4, waiting=4, chunk=4, context=4000, positions=100_000)
KEEPING = replace(SMALL, keeps=True, trims=True, chunk=512)
TURN = tuple(range(100, 1100))


@dataclass
class Run:
    """One sequence, as a pipeline would see it."""

    prompt: tuple[int, ...]
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    owner: str = ""
    starts: int = 0
    """Times that its cache began empty."""


class Pipeline:
    """Drives a scheduler, holds the caches that its steps make, and checks all of it."""

    def __init__(self, capacity: Capacity) -> None:
        self.scheduler = Scheduler(capacity)
        self.capacity = capacity
        self.runs: dict[int, Run] = {}
        self.started: list[int] = []
        self.ended: set[int] = set()
        self.places: list[deque[Step]] = [deque() for _ in range(capacity.stages + 1)]
        """Steps that wait for each stage, and those that wait for the driver."""
        self.caches: dict[int, int] = {}
        """Positions that a stage holds for each sequence, by the steps so far."""
        self.batches: dict[int, tuple[int, ...]] = {}
        self.now = 0.0
        self.turns: list[str] = []
        self.kept: set[int] = set()
        """Sequences whose caches were kept, whether they still are or not."""
        self.copied = 0
        """Positions that were not computed, as they were in a kept cache."""

    def add(self, prompt: tuple[int, ...], max_tokens: int, generated: tuple[int, ...] = (), owner: str = "") -> int:
        sequence = len(self.runs)
        self.runs[sequence] = Run(prompt, max_tokens, [*generated], owner=owner)
        self.scheduler.add(sequence, prompt, max_tokens, (EOS,), generated, owner)
        self.go_on()
        return sequence

    def go_on(self) -> None:
        self.now += 0.01
        for sequence in self.scheduler.admit():
            assert sequence not in self.started
            self.started.append(sequence)
            self.scheduler.opened(sequence)
        for step in self.scheduler.issue():
            self.check(step)
            self.places[0].append(step)
        flying = [step for place in self.places for step in place]
        batches = [step.batch for step in flying if step.batch is not None]
        assert len(batches) <= max(2, self.capacity.stages)
        if self.capacity.stages > 1:
            assert len(set(batches)) == len(batches), "a micro-batch is in one place"
        if not batches:
            prompts = [step for step in flying if step.batch is None and step.rows]
            assert len(prompts) <= self.capacity.stages + 1

    def check(self, step: Step) -> None:
        """Check a step against the sequences and the caches as the first stage has them."""
        for change in step.changes:
            self.change(change)
        self.batches = {
            name: kept
            for name, rows in self.batches.items()
            if (kept := tuple(row for row in rows if row in self.caches and row not in {r.sequence for r in step.rows}))
        }
        if not step.rows:
            assert any(change.length == 0 for change in step.changes)
            assert not self.busy, "it is for an idle pipeline"
            return
        for row in step.rows:
            run = self.runs[row.sequence]
            assert row.sequence not in self.ended
            held = self.caches.get(row.sequence, 0)
            run.starts += held == 0
            assert row.position == held, "positions leave no gap"
            known = [*run.prompt, *run.tokens]
            if step.batch is None:
                assert row.tokens
                assert sum(len(each.tokens or ()) for each in step.rows) <= self.capacity.chunk
                assert len(step.rows) == 1 or (self.capacity.batches and held == 0)
                assert list(row.tokens) == known[held : held + len(row.tokens)]
                assert held + len(row.tokens) < len(known), "the last token is fed with the step that samples"
            elif row.tokens is None:
                assert self.capacity.stages == 1
                assert held == len(known), "one step is ahead of what is known"
            else:
                assert row.tokens == (known[held],)
                assert held == len(known) - 1
            if step.batch is not None:
                assert held + 1 - len(run.prompt) < run.max_tokens, "no step is wasted on a token that cannot be"
            self.caches[row.sequence] = held + (1 if row.tokens is None else len(row.tokens))
        if step.batch is None:
            self.turns.append("prompt")
        else:
            self.turns.append("decode")
            self.batches[step.batch] = tuple(row.sequence for row in step.rows)
            assert self.capacity.batches or len(step.rows) == 1
        assert self.held() <= self.capacity.positions

    def change(self, change: Change) -> None:
        if change.length == 0:
            self.caches.pop(change.sequence, None)
        elif change.source == change.sequence:
            held = self.caches[change.sequence]
            assert change.length == held or (self.capacity.trims and change.length < held)
            self.caches[change.sequence] = change.length
            self.batches = {
                name: tuple(row for row in rows if row != change.sequence) for name, rows in self.batches.items()
            }
            self.kept.add(change.sequence)
        else:
            assert change.source in self.kept
            held = self.caches[change.source]
            assert change.length == held or (self.capacity.trims and change.length < held)
            source, run = self.runs[change.source], self.runs[change.sequence]
            assert source.owner == run.owner
            prompt = [*run.prompt, *run.tokens]
            assert [*source.prompt, *source.tokens][: change.length] == prompt[: change.length]
            assert change.length < len(prompt)
            assert not self.caches.get(change.sequence)
            self.caches[change.sequence] = change.length
            self.copied += change.length

    def held(self) -> int:
        """Positions that the caches take: those of a micro-batch are as long as its longest."""
        together = {sequence for rows in self.batches.values() for sequence in rows}
        alone = [tokens for sequence, tokens in self.caches.items() if sequence not in together]
        return sum(map(self.capacity.cache, alone)) + sum(
            len(rows) * self.capacity.cache(max(self.caches[sequence] for sequence in rows))
            for rows in self.batches.values()
        )

    @property
    def busy(self) -> list[int]:
        return [place for place, steps in enumerate(self.places) if steps]

    def advance(self, place: int, token: int) -> None:
        """Let a stage finish its oldest step, or the driver hear of one."""
        step = self.places[place].popleft()
        if place < self.capacity.stages:
            self.places[place + 1].append(step)
            return
        self.now += 0.01
        assert self.scheduler.done(step.number, self.now) == tuple(row.sequence for row in step.rows)
        for row in step.rows if step.batch is not None else ():
            run = self.runs[row.sequence]
            progress = self.scheduler.sampled(row.sequence, row.position + 1, token)
            if row.sequence in self.ended:
                assert progress is None
                continue
            run.tokens.append(token)
            assert progress is not None
            assert progress.index == len(run.tokens) - 1
            expected = "stop" if token == EOS else "length" if len(run.tokens) == run.max_tokens else None
            assert progress.reason == expected
            if expected is not None:
                run.reason = expected
                self.ended.add(row.sequence)
        self.go_on()

    def remove(self, sequence: int) -> None:
        self.scheduler.remove(sequence)
        self.ended.add(sequence)
        assert sequence not in self.scheduler.sequences
        self.go_on()

    def run(self, token: int = 1, until: int = 10**6) -> None:
        for _ in range(until):
            if not self.busy:
                return
            self.advance(self.busy[-1], token)
