"""Whether a step was lost on its way through the stages. Pure: what the stages say comes in.

A message to another node may be dropped there, by a mailbox that is full, and nobody is told. So the driver looks
every few seconds whether the oldest step in flight is still the same one. Steps keep their order: one that waits behind
others is not the oldest.

The oldest one may take long for good reasons, too. A node computes a long chunk, or loads another model meanwhile, or
stands still and is not down yet. So each stage is asked whether it has the step. Where one has it, its node knows
whether it goes on (:mod:`runtime.inference.health`). The step is lost if time and again nobody has it and no further
stage has taken it.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.inference.protocol import StepsHeld

LOOK_SECONDS = 5.0
"""Between two looks."""
LOOKS = 4
"""In a row at which nobody may have a step: about 20 s. A silent node is called down sooner, and a message that is
under way for longer has met a link that is too slow to be cut at."""
ANSWER_SECONDS = 10.0
"""How long a stage may take to say what it has; one that does not say has nothing."""


class StepWatch:
    """Follows the oldest step in flight."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._reached = 0
        self._missed = 0

    def look(self, oldest: int | None) -> bool:
        """Take note of the oldest step in flight; return whether to ask the stages, as it was so at the last look."""
        if oldest is not None and oldest == self._number:
            return True
        self._number, self._reached, self._missed = oldest, 0, 0
        return False

    def is_lost(self, stages: Sequence[StepsHeld | None]) -> bool:
        """Return whether the step is lost, by what each stage says; None is one that says nothing."""
        number = self._number
        known = [stage for stage in stages if stage is not None]
        if number is None or any(number in stage.held for stage in known):
            self._missed = 0
            return False
        reached = sum(stage.taken >= number for stage in known)
        self._missed = self._missed + 1 if reached <= self._reached else 1
        self._reached = max(reached, self._reached)
        return self._missed >= LOOKS
