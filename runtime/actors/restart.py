"""When an actor is started again: the pure part of supervision.

The terms are those of Erlang/OTP's supervisor (https://www.erlang.org/doc/system/sup_princ.html).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

Child = TypeVar("Child")


class Restart(StrEnum):
    """Which ends of an actor's life are followed by another. An end by :meth:`ActorSystem.stop` is final for all."""

    PERMANENT = "permanent"
    """All: a failure, and also when the actor stops itself."""
    TRANSIENT = "transient"
    """A failure; an actor that stops itself is done."""
    TEMPORARY = "temporary"
    """None."""


class Strategy(StrEnum):
    """Which children are started anew when one of them is."""

    ONE_FOR_ONE = "one_for_one"
    """That one: the children do not depend on each other."""
    ONE_FOR_ALL = "one_for_all"
    """All: they depend on each other."""
    REST_FOR_ONE = "rest_for_one"
    """That one and those that were spawned after it: each depends on those before it."""


class Supervision(msgspec.Struct, frozen=True):
    """How a parent looks after its children."""

    strategy: Strategy = Strategy.ONE_FOR_ONE
    intensity: int = 3
    """Restarts in any ``period`` that the parent grants to its children together; one more fails the parent."""
    period: float = 30.0
    """Seconds."""
    pause: float = 0.05
    """Seconds before the first restart; doubles with each recent one."""
    longest_pause: float = 5.0
    """Seconds."""


class RestartBudget:
    """Allows ``intensity`` restarts in any ``period`` seconds, each after a longer pause than the one before."""

    def __init__(self, terms: Supervision, jitter: random.Random) -> None:
        self._terms = terms
        self._jitter = jitter
        self._restarts: deque[float] = deque()

    def next_delay(self, now: float) -> float | None:
        """Return the seconds to wait before restarting, or None when the budget is spent.

        The pause doubles with each recent restart, with up to half of it as jitter, so that actors which failed for
        one common reason do not come back in step.
        """
        terms = self._terms
        while self._restarts and now - self._restarts[0] >= terms.period:
            self._restarts.popleft()
        if len(self._restarts) >= terms.intensity:
            return None
        pause: float = min(terms.longest_pause, terms.pause * 2.0 ** len(self._restarts))
        self._restarts.append(now)
        return pause * (1 - self._jitter.random() / 2)


def restarted_with(strategy: Strategy, children: Sequence[Child], failed: Child) -> list[Child]:
    """Return whom a strategy starts anew with a child that failed, that one included, in the order of their spawn."""
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return [failed]
        case Strategy.ONE_FOR_ALL:
            return list(children)
        case Strategy.REST_FOR_ONE:
            return list(children[children.index(failed) :])
