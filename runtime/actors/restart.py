"""When a failed actor is started again: the pure part of supervision.

The terms are those of Erlang/OTP's supervisor (https://www.erlang.org/doc/system/sup_princ.html).
"""

from __future__ import annotations

import random
from collections import deque
from enum import StrEnum


class Restart(StrEnum):
    """What a failure of an actor leads to. A stop that was asked for, also by the actor itself, is final for all."""

    PERMANENT = "permanent"
    """A restart; beyond the budget its parent fails too, or the node if it has none."""
    TRANSIENT = "transient"
    """A restart; beyond the budget it is given up, and only those who monitor it are told."""
    TEMPORARY = "temporary"
    """Its end."""


class RestartBudget:
    """Allows ``intensity`` restarts in any ``period`` seconds, each after a longer pause than the one before."""

    def __init__(
        self,
        intensity: int = 3,
        period: float = 30.0,
        base: float = 0.05,
        ceiling: float = 5.0,
        seed: int | None = None,
    ) -> None:
        self._intensity = intensity
        self._period = period
        self._base = base
        self._ceiling = ceiling
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self._restarts: deque[float] = deque()

    def next_delay(self, now: float) -> float | None:
        """Return the seconds to wait before restarting, or None when the budget is spent.

        The pause doubles with each recent restart, with up to half of it as jitter, so that actors which failed for
        one common reason do not come back in step.
        """
        while self._restarts and now - self._restarts[0] >= self._period:
            self._restarts.popleft()
        if len(self._restarts) >= self._intensity:
            return None
        pause: float = min(self._ceiling, self._base * 2.0 ** len(self._restarts))
        self._restarts.append(now)
        return pause * (1 - self._random.random() / 2)
