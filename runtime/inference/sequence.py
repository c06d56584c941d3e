"""One sequence on one stage: its cache, and the steps of the model over it. Runs on the compute thread."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from runtime.errors import ProtocolError
from runtime.inference.arrays import to_arrays, to_tensors
from runtime.inference.compute import Collect
from runtime.inference.ghosts import State
from runtime.inference.protocol import Hidden, OpenSequence, Prefilled, Sampled, Step
from runtime.inference.sampling import TokenSampler, collect_top
from runtime.inference.shard import Shard

STEPS_BETWEEN_CLEARS = 256
"""MLX keeps freed buffers for reuse; a growing cache leaves ones that nobody will want again."""


class StageSequence:
    """State of a sequence. Arrays are made on first use, because only the compute thread may make them."""

    def __init__(self, shard: Shard, opened: OpenSequence) -> None:
        self._shard = shard
        self._opened = opened
        self._cache: list[Any] | None = None
        self._sampler: TokenSampler | None = None
        self._last: mx.array | None = None
        self._position = 0
        self._steps = 0

    def step(self, step: Step | Hidden) -> Collect[Hidden | Sampled | Prefilled]:
        """Start a step; the returned function waits for its result and makes the message that carries it on.

        Raises:
            ProtocolError: the step is not the next one of the sequence.
        """
        if step.position != self._position:
            raise ProtocolError(
                f"sequence {step.sequence} is at position {self._position} here, and a step for {step.position} came"
            )
        if self._cache is None:
            self._cache = self._shard.new_cache()
        inputs = self._inputs(step)
        length = int((inputs["hidden"] if isinstance(inputs, dict) else inputs).shape[1])
        output = self._shard.forward(inputs, self._cache)
        self._position += length
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CLEARS == 0 or length > 1:
            mx.clear_cache()
        if isinstance(output, dict):
            return self._pass_on(step, output)
        return self._sample(step, output) if step.sample else self._absorb(step)

    def _inputs(self, step: Step | Hidden) -> mx.array | State:
        match step:
            case Hidden(state=state):
                if "hidden" not in state:
                    raise ProtocolError(f"a step of sequence {step.sequence} came without its hidden state")
                return to_arrays(state)
            case Step(tokens=None):
                if self._last is None:
                    raise ProtocolError(f"sequence {step.sequence} has no sampled token to go on from")
                return self._last[None]
            case Step(tokens=tokens):
                return mx.array([tokens], dtype=mx.int32)

    def _pass_on(self, step: Step | Hidden, output: State) -> Collect[Hidden]:
        assert self._cache is not None  # noqa: S101 - step() made it
        mx.async_eval(output, self._shard.ghost_state(self._cache))

        def collect() -> Hidden:
            mx.eval(output)
            return Hidden(step.sequence, step.position, to_tensors(output), step.sample)

        return collect

    def _absorb(self, step: Step | Hidden) -> Collect[Prefilled]:
        """Evaluate the cache alone: the head over a whole prompt is costly, and nobody wants its output."""
        assert self._cache is not None  # noqa: S101 - step() made it
        state = self._shard.state(self._cache)
        mx.async_eval(state)
        position = self._position

        def collect() -> Prefilled:
            mx.eval(state)
            return Prefilled(step.sequence, position)

        return collect

    def _sample(self, step: Step | Hidden, logits: mx.array) -> Collect[Sampled]:
        assert self._cache is not None  # noqa: S101 - step() made it
        if self._sampler is None:
            opened = self._opened
            self._sampler = TokenSampler(
                opened.sampling,
                opened.seed,
                opened.prompt,
                int(logits.shape[-1]),
                opened.logprobs,
                opened.generated,
            )
        token, logprob, top = self._sampler(logits[:, -1, :], self._position)
        self._last = token
        wanted = [array for array in (token, logprob, top) if array is not None]
        mx.async_eval(wanted, self._shard.ghost_state(self._cache))
        position = self._position

        def collect() -> Sampled:
            mx.eval(wanted)
            return Sampled(
                sequence=step.sequence,
                position=position,
                token=int(token.item()),
                logprob=None if logprob is None else float(logprob.item()),
                top=collect_top(top),
            )

        return collect
