"""What the scheduler knows of a sequence: its tokens, and how far steps for them were issued."""

from __future__ import annotations

import msgspec

from runtime.inference.prefixes import Prefix


class ScheduledSequence(msgspec.Struct, eq=False):
    """A sequence that waits or runs."""

    number: int
    """By which the driver and the stages call it."""
    order: int
    """Its place among all of them, as they came."""
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
    """The micro-batch that it is in."""
    is_open: bool = False
    """Whether the stages know it."""
    is_opening: bool = False
    """Whether they are being told."""

    @property
    def known(self) -> int:
        """Tokens of the prompt and the completion, as far as they are known."""
        return len(self.prompt) + len(self.tokens)

    def known_tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Return some of those."""
        split = len(self.prompt)
        return (*self.prompt[start:stop], *self.tokens[max(0, start - split) : max(0, stop - split)])

    @property
    def is_exhausted(self) -> bool:
        """Whether a step was issued for each token that it may have."""
        return self.fed + 1 - len(self.prompt) >= self.max_tokens
