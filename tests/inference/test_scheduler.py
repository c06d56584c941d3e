"""Whatever order results come in, every sequence takes its steps in order, within the cache, and comes to an end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime.inference.pace import FIRST_CHUNK, LEAST_CHUNK, SHARE, Pace
from runtime.inference.protocol import Change, Step
from runtime.inference.scheduler import CACHE_STEP, Capacity, Scheduler

EOS = 7
SMALL = Capacity(stages=1, sequences=4, waiting=4, chunk=4, context=4000, positions=100_000)


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
            assert sum(step.batch is None for step in flying) <= self.capacity.stages + 1

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


@given(
    data=st.data(),
    stages=st.integers(1, 4),
    limit=st.integers(1, 6),
    chunk=st.integers(1, 300),
    batches=st.booleans(),
    positions=st.integers(3, 12),
    sizes=st.lists(st.tuples(st.integers(1, 600), st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=8),
    keeps=st.booleans(),
    trims=st.booleans(),
)
@settings(max_examples=100)
def test_any_interleaving_gives_every_sequence_its_steps_in_order_and_an_end(
    data: st.DataObject,
    stages: int,
    limit: int,
    chunk: int,
    batches: bool,
    positions: int,
    sizes: list[tuple[int, int, int]],
    keeps: bool,
    trims: bool,
) -> None:
    pipeline = Pipeline(
        Capacity(
            stages=stages,
            sequences=limit,
            waiting=10,
            chunk=chunk,
            context=700,
            positions=positions * CACHE_STEP,
            batches=batches,
            keeps=keeps,
            trims=trims,
        )
    )
    cancelled = set()
    draw = data.draw(st.randoms(use_true_random=False))
    while sizes or pipeline.busy:
        if sizes and (not pipeline.busy or draw.random() < 0.1):
            length, generated, left = sizes.pop()
            prompt = tuple(range(100, 100 + length))
            pipeline.add(prompt, generated + left, tuple(range(1000, 1000 + generated)), draw.choice("ab"))
        alive = pipeline.scheduler.sequences
        if alive and draw.random() < 0.02:
            victim = draw.choice(alive)
            cancelled.add(victim)
            pipeline.remove(victim)
        if pipeline.busy:
            pipeline.advance(draw.choice(pipeline.busy), draw.choice([1, 2, 3, 4, 5, 6, EOS]))
    assert pipeline.scheduler.load == 0
    assert keeps or not pipeline.kept
    pipeline.scheduler.forget_prefixes()
    assert pipeline.scheduler.positions == 0
    assert pipeline.started == sorted(pipeline.started), "first come, first served"
    for sequence, run in pipeline.runs.items():
        assert (run.reason is not None) is (sequence not in cancelled)


@given(stages=st.integers(1, 3), positions=st.integers(4, 8), count=st.integers(4, 8))
@settings(max_examples=15)
def test_sequences_that_outgrow_the_cache_are_computed_again_and_the_first_one_never_is(
    stages: int, positions: int, count: int
) -> None:
    pipeline = Pipeline(
        Capacity(stages=stages, sequences=8, waiting=8, chunk=64, context=700, positions=positions * CACHE_STEP)
    )
    for _ in range(count):
        pipeline.add(tuple(range(100, 140)), 600)
    pipeline.run()
    assert {run.reason for run in pipeline.runs.values()} == {"length"}
    assert {len(run.tokens) for run in pipeline.runs.values()} == {600}
    assert pipeline.runs[0].starts == 1
    assert sum(run.starts for run in pipeline.runs.values()) > count


@given(limit=st.integers(1, 4), waiting=st.integers(0, 4), extra=st.integers(1, 3))
def test_no_more_wait_than_may(limit: int, waiting: int, extra: int) -> None:
    scheduler = Scheduler(replace(SMALL, sequences=limit, waiting=waiting))
    taken = 0
    for sequence in range(limit + waiting + extra):
        if not scheduler.is_full():
            scheduler.add(sequence, (1,), 1, ())
            taken += 1
    assert taken == scheduler.load == limit + waiting
    assert scheduler.admit() == list(range(limit))
    assert scheduler.admit() == []
    assert scheduler.is_full()
    scheduler.remove(0)
    assert not scheduler.is_full()


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("sequences", [2, 3, 7, 12])
def test_every_stage_has_a_micro_batch_and_they_are_of_one_size(stages: int, sequences: int) -> None:
    pipeline = Pipeline(replace(SMALL, stages=stages, sequences=16))
    for _ in range(sequences):
        pipeline.add((5,), 400)
    pipeline.run(until=400)
    sizes = [len(rows) for rows in pipeline.batches.values()]
    assert len(sizes) == min(stages, sequences)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("gone", [(0, 2, 4), (1, 3, 5), (0, 1, 2, 3)])
def test_micro_batches_are_evened_out_when_sequences_leave_one(gone: tuple[int, ...]) -> None:
    pipeline = Pipeline(replace(SMALL, stages=2, sequences=8))
    for _ in range(8):
        pipeline.add((5,), 3000)
    pipeline.run(until=100)
    for sequence in gone:
        pipeline.remove(sequence)
    pipeline.run(until=100)
    sizes = [len(rows) for rows in pipeline.batches.values()]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 1


def test_prompts_take_turns_with_the_decoding_of_others_and_with_each_other() -> None:
    pipeline = Pipeline(replace(SMALL, chunk=4))
    pipeline.add((5,), 3000)
    pipeline.run(until=40)
    long, short = pipeline.add(tuple(range(200)), 2), pipeline.add(tuple(range(24)), 2)
    pipeline.turns.clear()
    pipeline.run(until=60)
    turns = pipeline.turns
    assert turns.count("prompt") > 10
    assert all(turns[index : index + 2] != ["prompt", "prompt"] for index in range(len(turns)))
    assert pipeline.runs[short].reason == "length"
    assert pipeline.runs[long].reason is None


def test_a_sequence_far_longer_than_others_does_not_make_them_as_long() -> None:
    pipeline = Pipeline(replace(SMALL, context=40_000, positions=1_000_000, chunk=2048, sequences=8))
    for _ in range(6):
        pipeline.add((5,), 9000)
    long = pipeline.add(tuple(range(20_000)), 9000)
    pipeline.run(until=200)
    assert (long,) in pipeline.batches.values()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_token_that_comes_after_the_end_changes_nothing(stages: int) -> None:
    scheduler = Scheduler(replace(SMALL, stages=stages))
    scheduler.add(1, (5,), 9, (EOS,))
    for sequence in scheduler.admit():
        scheduler.opened(sequence)
    steps = scheduler.issue()
    scheduler.done(steps[0].number, 0.1)
    progress = scheduler.sampled(1, 1, EOS)
    assert progress is not None
    assert progress.reason == "stop"
    assert scheduler.sampled(1, 2, 3) is None
    assert not any(step.rows for step in scheduler.issue())
    assert scheduler.done(999, 0.3) == ()


def test_one_token_asked_is_one_step_even_with_lookahead() -> None:
    pipeline = Pipeline(SMALL)
    pipeline.add((5,), 1)
    assert [len(place) for place in pipeline.places] == [1, 0]
    pipeline.run()
    assert pipeline.turns == ["decode"]


def test_a_turn_of_prompts_takes_its_share_of_the_gap_whatever_tokens_come_to_cost() -> None:
    pace = Pace()
    assert pace.chunk(2048, 1, 8) == FIRST_CHUNK
    for _ in range(5):
        pace.gap(0.1, 0)
    assert pace.chunk(2048, 1, 8) == FIRST_CHUNK
    for cost in (0.001, 0.004):
        for _ in range(40):
            tokens = pace.chunk(2048, 1, 8)
            pace.gap(0.1 + 0.02 + cost * tokens, tokens)
        assert 0.02 + cost * pace.chunk(2048, 1, 8) == pytest.approx(0.1 * SHARE, rel=0.1)
    assert pace.chunk(20, 1, 8) == 20
    assert pace.chunk(2048, 16, 8) == pytest.approx(2 * pace.chunk(2048, 1, 8), abs=1)
    for _ in range(40):
        pace.gap(0.1 + 1.0, LEAST_CHUNK)
    assert pace.chunk(2048, 1, 8) == LEAST_CHUNK


def test_one_slow_gap_does_not_lengthen_the_turns_of_prompts() -> None:
    pace = Pace()
    for seconds in (0.1, 0.1, 5.0, 0.1, 0.1):
        pace.gap(seconds, 0)
    pace.gap(0.2, 100)
    assert pace.chunk(2048, 1, 8) == pytest.approx(100 * SHARE, abs=1)


KEEPING = replace(SMALL, keeps=True, trims=True, chunk=512)
TURN = tuple(range(100, 1100))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("trims", [True, False])
def test_the_second_turn_of_a_chat_computes_what_is_new(stages: int, trims: bool) -> None:
    pipeline = Pipeline(replace(KEEPING, stages=stages, trims=trims))
    first = pipeline.runs[pipeline.add(TURN, 50)]
    pipeline.run(token=3)
    pipeline.add((*TURN, *first.tokens, 4, 4, 4), 5)
    pipeline.run()
    # With one stage, or where only as a whole, what ran over the last token counts too.
    assert pipeline.copied >= len(TURN) + 49


def test_a_prompt_that_differs_within_begins_where_it_does_if_the_cache_can_be_cut() -> None:
    for trims, copied in ((True, 600), (False, 0)):
        pipeline = Pipeline(replace(KEEPING, trims=trims))
        pipeline.add(TURN, 5)
        pipeline.run()
        pipeline.add((*TURN[:600], 7, 8, 9), 5)
        pipeline.run()
        assert pipeline.copied == copied


def test_nobody_finds_what_another_owner_has() -> None:
    pipeline = Pipeline(KEEPING)
    pipeline.add(TURN, 5, owner="one")
    pipeline.run()
    pipeline.add(TURN, 5, owner="other")
    pipeline.run()
    assert pipeline.copied == 0
    pipeline.add(TURN, 5, owner="one")
    pipeline.run()
    assert pipeline.copied == len(TURN) - 1


def test_what_is_kept_makes_room_for_who_comes_and_the_least_recently_used_goes_first() -> None:
    pipeline = Pipeline(replace(KEEPING, positions=20 * CACHE_STEP, context=5 * CACHE_STEP))
    prompts = [tuple(range(start, start + 1000)) for start in range(10_000, 60_000, 10_000)]
    for prompt in prompts[:3]:
        pipeline.add(prompt, 5)
        pipeline.run()
    pipeline.add((*prompts[0], 7), 5)
    pipeline.run()
    assert pipeline.copied >= 1000
    for prompt in prompts[3:]:
        pipeline.add(prompt, 5)
        pipeline.run()
    copied = pipeline.copied
    pipeline.add((*prompts[1], 7), 5)
    pipeline.run()
    assert pipeline.copied == copied, "it was used longest ago"
    pipeline.add((*prompts[0], 8), 5)
    pipeline.run()
    assert pipeline.copied >= copied + 1000


def test_a_turn_that_leaves_no_room_for_a_copy_takes_the_cache_over() -> None:
    pipeline = Pipeline(replace(KEEPING, positions=6 * CACHE_STEP, context=6 * CACHE_STEP))
    first = pipeline.runs[pipeline.add(TURN, 5)]
    pipeline.run()
    pipeline.add((*TURN, *first.tokens, 4), 5)
    pipeline.run()
    assert pipeline.copied >= len(TURN)


def test_after_a_failure_nothing_that_was_kept_is_used() -> None:
    pipeline = Pipeline(KEEPING)
    pipeline.add(TURN, 5)
    pipeline.run()
    pipeline.scheduler.forget_prefixes()
    pipeline.add(TURN, 5)
    pipeline.run()
    assert pipeline.copied == 0


def test_stages_may_forget_a_sequence_once_the_step_that_drops_its_cache_is_done() -> None:
    pipeline = Pipeline(KEEPING)
    kept = pipeline.add(TURN, 5)
    pipeline.run()
    assert pipeline.scheduler.closed() == []
    pipeline.scheduler.forget_prefixes()
    short = pipeline.add((5,), 5)
    assert pipeline.scheduler.closed() == []
    pipeline.run()
    assert sorted(pipeline.scheduler.closed()) == [kept, short]


def test_a_prefix_stays_until_who_was_admitted_with_it_has_begun() -> None:
    scheduler = Scheduler(KEEPING)

    def run(sequence: int) -> None:
        scheduler.opened(sequence)
        while steps := scheduler.issue():
            for step in steps:
                scheduler.done(step.number, 0.0)
                for row in step.rows if step.batch is not None else ():
                    scheduler.sampled(row.sequence, row.position + 1, EOS)

    scheduler.add(1, TURN[:100], 5, (EOS,))
    run(*scheduler.admit())
    scheduler.add(2, (*TURN[:150],), 5, (EOS,))
    scheduler.add(3, (*TURN[:100], 8, 9), 5, (EOS,))
    assert scheduler.admit() == [2, 3]
    run(2)  # it has all of the first one, which the third has yet to copy
    scheduler.opened(3)
    (step, *_) = scheduler.issue()
    assert Change(3, 1, 100) in step.changes
    assert Change(1) not in step.changes[: step.changes.index(Change(3, 1, 100))]


def test_a_sequence_that_gives_up_its_place_while_the_stages_are_told_of_it_is_told_of_once() -> None:
    scheduler = Scheduler(replace(SMALL, positions=4 * CACHE_STEP, context=4 * CACHE_STEP, chunk=512))
    scheduler.add(1, (5,) * 10, 700, ())
    assert scheduler.admit() == [1]
    scheduler.opened(1)
    scheduler.add(2, (5,) * 10, 500, ())
    strangers = scheduler.admit()
    tokens = 0
    while tokens < 600:
        for step in scheduler.issue():
            scheduler.done(step.number, 0.0)
            for row in step.rows if step.batch is not None else ():
                scheduler.sampled(row.sequence, row.position + 1, 1)
                tokens += 1
        strangers += scheduler.admit()
    assert strangers == [2]
    assert scheduler.sequences == [1, 2]
    assert scheduler.positions < 4 * CACHE_STEP, "the second one gave up its place"
    scheduler.opened(2)
    scheduler.opened(2)
    scheduler.remove(1)
    strangers += scheduler.admit()
    assert strangers == [2]
