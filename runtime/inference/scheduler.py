"""Which step of which sequence runs next: the pure part of a driver.

Sequences are independent here: each has its own steps in flight, and the stages take them in the order they come, so
that with several stages several sequences are in the pipeline at once.

A prompt is taken in by chunks, and its last token in a step of its own, as mlx-lm does it: products of the same
shapes give the same rounding, and the very same text.
"""

from __future__ import annotations

from collections import deque

import msgspec

from runtime.inference.protocol import Step


class _Sequence(msgspec.Struct):
    prompt: tuple[int, ...]
    max_tokens: int
    eos: frozenset[int]
    replayed: int = 0
    """Tokens at the end of ``prompt`` that were generated once already."""
    issued: int = 0
    """Prompt tokens for which a step was issued."""
    samples: int = 0
    """Steps that sample, issued."""
    tokens: int = 0
    """Tokens sampled."""
    in_flight: int = 0


class Progress(msgspec.Struct, frozen=True):
    """What became of a sampled token: its index in the completion, and why it is the last one if it is."""

    index: int
    reason: str | None


class Scheduler:
    """Admits sequences up to a limit, and issues their steps.

    Args:
        stages: length of the pipeline. With one stage, the next step may start before the token is known.
        limit: sequences at once.
        waiting: sequences that may wait beyond that.
        chunk: prompt tokens a step.
    """

    def __init__(self, *, stages: int, limit: int, waiting: int, chunk: int) -> None:
        self._window = stages + 1
        """Steps of one sequence in flight."""
        self._lookahead = 1 if stages == 1 else 0
        self._limit = limit
        self._capacity = limit + waiting
        self._chunk = chunk
        self._active: dict[int, _Sequence] = {}
        self._waiting: deque[tuple[int, _Sequence]] = deque()

    @property
    def load(self) -> int:
        """Sequences running and waiting."""
        return len(self._active) + len(self._waiting)

    @property
    def sequences(self) -> list[int]:
        """Ids of all sequences, running ones first."""
        return [*self._active, *(sequence for sequence, _ in self._waiting)]

    def is_full(self) -> bool:
        """Whether one more sequence would be refused."""
        return self.load >= self._capacity

    def add(
        self, sequence: int, prompt: tuple[int, ...], max_tokens: int, eos: tuple[int, ...], replayed: int = 0
    ) -> None:
        """Queue a sequence; :meth:`admit` starts it.

        The last ``replayed`` tokens of the prompt were generated once already. They are taken in one by one as they
        were then, and the prompt before them by the same chunks, for the same rounding.
        """
        self._waiting.append((sequence, _Sequence(prompt, max_tokens, frozenset(eos), replayed)))

    def admit(self) -> list[int]:
        """Return the sequences that may start now."""
        admitted = []
        while self._waiting and len(self._active) < self._limit:
            sequence, state = self._waiting.popleft()
            self._active[sequence] = state
            admitted.append(sequence)
        return admitted

    def steps(self, sequence: int) -> list[Step]:
        """Return the steps that a sequence can take now; they are counted as in flight."""
        state = self._active.get(sequence)
        if state is None:
            return []
        steps: list[Step] = []
        last = len(state.prompt) - 1
        while state.issued < last and state.in_flight < self._window:
            end = min(state.issued + self._chunk, max(last - state.replayed, state.issued + 1))
            tokens = state.prompt[state.issued : end]
            steps.append(self._issue(state, Step(sequence, state.issued, tokens, sample=False)))
            state.issued += len(tokens)
        if state.issued == last and state.in_flight < self._window:
            steps.append(self._issue(state, Step(sequence, last, state.prompt[last:], sample=True)))
            state.issued += 1
            state.samples += 1
        while (
            self._lookahead
            and state.issued > last
            and state.samples < state.max_tokens
            and state.samples - state.tokens <= self._lookahead
            and state.in_flight < self._window
        ):
            steps.append(self._issue(state, Step(sequence, last + state.samples, None, sample=True)))
            state.samples += 1
        return steps

    def prefilled(self, sequence: int) -> None:
        """A step without a sample came out of the pipeline."""
        state = self._active.get(sequence)
        if state is not None:
            state.in_flight -= 1

    def sampled(self, sequence: int, token: int) -> tuple[Progress | None, list[Step]]:
        """A token came out of the pipeline; return what became of it and the steps it allows."""
        state = self._active.get(sequence)
        if state is None:
            return None, []
        state.in_flight -= 1
        state.tokens += 1
        reason = "stop" if token in state.eos else "length" if state.tokens >= state.max_tokens else None
        progress = Progress(state.tokens - 1, reason)
        if reason is not None:
            return progress, []
        if self._lookahead:
            return progress, self.steps(sequence)
        position = len(state.prompt) - 1 + state.samples
        state.samples += 1
        return progress, [self._issue(state, Step(sequence, position, (token,), sample=True))]

    def remove(self, sequence: int) -> bool:
        """Forget a sequence; return whether it had been started."""
        if self._active.pop(sequence, None) is not None:
            return True
        self._waiting = deque(entry for entry in self._waiting if entry[0] != sequence)
        return False

    def _issue(self, state: _Sequence, step: Step) -> Step:
        state.in_flight += 1
        return step
