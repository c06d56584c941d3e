"""What a stage does with steps: the caches of its sequences, and the model over them. Runs on the compute thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import msgspec

from runtime.errors import ProtocolError
from runtime.inference.arrays import to_arrays, to_tensors
from runtime.inference.caches import beginning, extracted
from runtime.inference.compute import Computation
from runtime.inference.ghosts import State
from runtime.inference.microbatch import MicroBatch, StageSequence
from runtime.inference.protocol import Change, Chosen, Hidden, Prefilled, Sampled, Step
from runtime.inference.reclaim import trim
from runtime.inference.sampling import TokenSampler, collect_scores, sample_rows
from runtime.inference.shard import Shard

STEPS_BETWEEN_CLEARS = 256
"""MLX keeps freed buffers for reuse; a growing cache leaves ones that nobody will want again."""

Result = Hidden | Sampled | Prefilled
T = TypeVar("T")


class _Place(msgspec.Struct, frozen=True):
    """A row of a step."""

    index: int
    sequence: int
    position: int
    length: int


class StageSequences:
    """Runs steps over the sequences of a stage, in the order in which the driver issued them."""

    def __init__(self, shard: Shard, sequences: Mapping[int, StageSequence]) -> None:
        """``sequences`` are those that are open; another thread opens and closes them."""
        self._shard = shard
        self._open = sequences
        self._batches: dict[int, MicroBatch] = {}
        self._leaving: list[mx.array] = []
        """Of the caches that are kept from now on; they are computed with the next step."""
        self._steps = 0
        self._on_gpu = mx.default_device() == mx.gpu

    def step(self, step: Step | Hidden, *, launch: bool = False) -> Computation[Result]:
        """Build a step; its result is the message that carries it on.

        Args:
            step: the next one in the driver's order.
            launch: whether to launch its beginning already, as the device is idle.

        Raises:
            ProtocolError: the step is not the next one of a sequence.
        """
        try:
            built = self._build(step, launch=launch)
        except BaseException:
            self._abandon(step)
            raise
        return built._replace(
            collect=self._or_abandon(step, built.collect), launch=self._or_abandon(step, built.launch)
        )

    def _or_abandon(self, step: Step | Hidden, part: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            try:
                return part()
            except BaseException:
                self._abandon(step)
                raise

        return run

    def _build(self, step: Step | Hidden, *, launch: bool) -> Computation[Result]:
        self._take_out(step.changes)
        for change in step.changes:
            self._change(change)
        places = _places(step)
        # Some may have been closed since the step was issued.
        kept = [place for place in places if place.sequence in self._open]
        rows = [self._open[place.sequence] for place in kept]
        for place, row in zip(kept, rows, strict=True):
            if place.position != row.position:
                raise ProtocolError(
                    f"sequence {place.sequence} is at position {row.position} here, "
                    f"and a step for {place.position} came"
                )
        if not rows:
            return self._empty(step)
        inputs = self._inputs(step, kept, rows)
        if step.batch is not None:
            return self._decode(step, rows, inputs, launch=launch)
        return self._prompts(step, rows, [place.length for place in kept], inputs, launch=launch)

    def _abandon(self, step: Step | Hidden) -> None:
        """Give up the caches of a step that failed, whatever state they are in."""
        batch = None if step.batch is None else self._batches.pop(step.batch, None)
        if batch is not None:
            batch.drop({row.opened.sequence for row in batch.rows})
        for place in _places(step):
            if place.sequence in self._open:
                self._open[place.sequence].cache = None

    def _take_out(self, changes: Sequence[Change]) -> None:
        """Take those that leave their micro-batch out of it, all at once."""
        dropped = {change.sequence for change in changes if change.length == 0}
        kept = {change.sequence for change in changes if change.length and change.source == change.sequence}
        for batch in self._batches.values():
            batch.leave([row for row in batch.rows if row.opened.sequence in kept])
            batch.drop(dropped)
        self._forget_empty()

    def _change(self, change: Change) -> None:
        row = self._open.get(change.sequence)
        if row is None:
            return  # it was closed since
        if change.length == 0:
            row.cache, row.position = None, 0
        elif change.source == change.sequence:
            cache = row.cache
            if cache is not None and change.length < row.position:
                cache = beginning(cache, change.length)
            row.cache, row.position = cache, change.length
            row.sampler, row.last = None, None
            if cache is not None:
                # Until it is computed it holds on to the cache of all those that it was with.
                self._leaving += self._shard.state(cache)
        else:
            source = self._open.get(change.source)
            if source is None or source.cache is None or source.position < change.length:
                raise ProtocolError(f"sequence {change.source} has no cache of {change.length} tokens to begin with")
            row.cache, row.position = beginning(source.cache, change.length), change.length

    def _forget_empty(self) -> None:
        self._batches = {name: batch for name, batch in self._batches.items() if batch.rows}

    def _inputs(self, step: Step | Hidden, kept: list[_Place], rows: list[StageSequence]) -> mx.array | State:
        if isinstance(step, Hidden):
            if "hidden" not in step.state:
                raise ProtocolError(f"step {step.number} came without its hidden state")
            state = to_arrays(step.state)
            if len(kept) < len(step.rows):
                indices = mx.array([place.index for place in kept])
                state = {name: array[indices] for name, array in state.items()}
            return state
        tokens = [step.rows[place.index].tokens for place in kept]
        if all(each is None for each in tokens):
            return _last_tokens(rows)[:, None]
        length = max(place.length for place in kept)
        return mx.concatenate(
            [
                _last_tokens([row])[:, None]
                if each is None
                else mx.array([(0,) * (length - len(each)) + each], dtype=mx.int32)
                for each, row in zip(tokens, rows, strict=True)
            ]
        )

    def _prompts(
        self,
        step: Step | Hidden,
        rows: list[StageSequence],
        lengths: list[int],
        inputs: mx.array | State,
        *,
        launch: bool,
    ) -> Computation[Result]:
        """Build a step over a chunk of one prompt, or over several prompts from their beginnings."""
        width = int((inputs["hidden"] if isinstance(inputs, dict) else inputs).shape[1])
        alone = lengths == [width]
        if alone:
            cache = rows[0].cache or self._shard.new_cache()
        elif any(row.position for row in rows):
            raise ProtocolError(f"step {step.number} takes in several prompts, and not all from the beginning")
        else:
            cache = self._shard.new_cache([width - length for length in lengths])
        output = self._shard.forward(inputs, cache, launch=launch)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            row.cache = cache if alone else extracted(cache, index)
            row.position += length
        mx.clear_cache()
        if isinstance(output, dict):
            return self._pass_on(step, rows, lengths, output, self._shard.ghost_state(cache))
        # The cache alone: the head over a whole prompt is costly, and nobody wants its output.
        state = self._shard.state(cache)

        def collect() -> Prefilled:
            mx.eval(state)
            return Prefilled(step.number)

        return self._launching(collect, state)

    def _decode(
        self, step: Step | Hidden, rows: list[StageSequence], inputs: mx.array | State, *, launch: bool
    ) -> Computation[Result]:
        assert step.batch is not None  # noqa: S101 - step() chose by it
        batch = self._batches.setdefault(step.batch, MicroBatch(self._shard))
        changes = batch.rows != rows
        batch.hold(rows)
        if changes:
            self._forget_empty()
        output = self._shard.forward(inputs, batch.cache, launch=launch)
        for row in rows:
            row.position += 1
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CLEARS == 0:
            mx.clear_cache()
        moved = self._shard.ghost_state(batch.cache)
        if len(rows) > 1:
            # Each row's offset: layers without positions do not read it, and nothing else would evaluate it.
            moved += self._shard.state(batch.cache)
        if isinstance(output, dict):
            return self._pass_on(step, rows, [1] * len(rows), output, moved)
        return self._sample(step, rows, output[:, -1, :], moved)

    def _pass_on(
        self,
        step: Step | Hidden,
        rows: list[StageSequence],
        lengths: list[int],
        output: State,
        moved: list[mx.array],
    ) -> Computation[Hidden]:
        places = tuple(
            (row.opened.sequence, row.position - length, length) for row, length in zip(rows, lengths, strict=True)
        )

        def collect() -> Hidden:
            mx.eval(output)
            return Hidden(step.number, step.batch, places, step.changes, to_tensors(output))

        return self._launching(collect, output, moved)

    def _sample(
        self, step: Step | Hidden, rows: list[StageSequence], logits: mx.array, moved: list[mx.array]
    ) -> Computation[Sampled]:
        for row in rows:
            if row.sampler is None:
                row.sampler = TokenSampler(row.opened, int(logits.shape[-1]))
        places = [(row.opened.sequence, row.position) for row in rows]
        samplers = [row.sampler for row in rows if row.sampler is not None]
        tokens, scores = sample_rows(samplers, logits, [row.position for row in rows])
        for index, row in enumerate(rows):
            row.last = (tokens, index)

        def collect() -> Sampled:
            mx.eval(tokens, scores)
            return Sampled(
                step.number,
                tuple(
                    Chosen(sequence, position, token, *collect_scores(score))
                    for (sequence, position), token, score in zip(places, tokens.tolist(), scores, strict=True)
                ),
            )

        return self._launching(collect, tokens, scores, moved)

    def _launching(self, collect: Callable[[], T], *arrays: Any) -> Computation[T]:
        """Launch at once for a GPU, else when the step before is collected: see :mod:`runtime.inference.compute`."""
        leaving, self._leaving = self._leaving, []
        if self._on_gpu:
            mx.async_eval(*arrays, leaving)
            return Computation(collect)
        return Computation(collect, lambda: mx.async_eval(*arrays, leaving))

    def _empty(self, step: Step | Hidden) -> Computation[Result]:
        """Pass a step on that is only to drop caches, or whose sequences are all closed: the driver counts on it."""

        def collect() -> Result:
            # The ledger takes a freed cache for promised memory, which it is only once the system has it back.
            trim()
            if not self._shard.span.is_last:
                return Hidden(step.number, step.batch, (), step.changes, {})
            return Prefilled(step.number) if step.batch is None else Sampled(step.number, ())

        return self._launching(collect)._replace(teaches=False)


def _places(step: Step | Hidden) -> list[_Place]:
    """Return where each row of a step is."""
    if isinstance(step, Hidden):
        return [_Place(index, *row) for index, row in enumerate(step.rows)]
    return [
        _Place(index, row.sequence, row.position, 1 if row.tokens is None else len(row.tokens))
        for index, row in enumerate(step.rows)
    ]


def _last_tokens(rows: list[StageSequence]) -> mx.array:
    """Return the tokens that the rows sampled last, (rows,)."""
    first = rows[0].last
    if (
        first is not None
        and first[0].size == len(rows)
        and all(
            row.last is not None and row.last[0] is first[0] and row.last[1] == index for index, row in enumerate(rows)
        )
    ):
        return first[0]  # as they come from the step before, unless somebody came or went
    return mx.concatenate([_last_token(row) for row in rows])


def _last_token(row: StageSequence) -> mx.array:
    if row.last is None:
        raise ProtocolError(f"sequence {row.opened.sequence} has no sampled token to go on from")
    tokens, index = row.last
    return tokens[index : index + 1]
