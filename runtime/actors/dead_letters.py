"""Messages that nobody will handle: counted, told to who wants to know, and logged within bounds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import msgspec
from loguru import logger

from runtime.actors.ref import ActorRef

LOGGED = 5
"""Lines in the log in any period; the next line after that says how many were left out."""
PERIOD = 10.0
"""Seconds."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that nobody will handle.

    ``reason`` is ``stopped`` (its actor ended before it came to it), ``actor_stopped`` (it came from another node for
    an actor that is not there), ``mailbox_full`` (the same, for a full mailbox), ``overflow`` (newer messages took its
    place), ``cancelled`` (whoever asked gave up while the request waited) or ``late_reply`` (the answer to an ask that
    is over).
    """

    target: ActorRef | None
    """Whom it was for. For a late reply it is who answered, or None if this node does not know that any more."""
    message: object
    """The message; for a late reply the answer, or the fault that took its place."""
    reason: str


class DeadLetters:
    """Where dead letters go. They are events: nothing is kept but how many there were for each reason."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        """How many there were, by reason."""
        self._now = now
        self._subscribers: list[Callable[[DeadLetter], None]] = []
        self._since = float("-inf")
        self._logged = 0
        self._unlogged = 0

    def subscribe(self, call: Callable[[DeadLetter], None]) -> Callable[[], None]:
        """Be called with each dead letter; return what ends that. The call must not block, nor raise."""
        self._subscribers.append(call)
        return lambda: self._subscribers.remove(call) if call in self._subscribers else None

    def record(self, target: ActorRef | None, message: object, reason: str) -> None:
        """Count a message that nobody will handle, and tell who wants to know."""
        self.counts[reason] += 1
        self._log(target, message, reason)
        if self._subscribers:
            letter = DeadLetter(target, message, reason)
            for call in tuple(self._subscribers):
                try:
                    call(letter)
                except Exception:  # noqa: BLE001 - whoever looks on must not break the delivery of messages
                    logger.exception("a subscriber of dead letters failed")

    def _log(self, target: ActorRef | None, message: object, reason: str) -> None:
        now = self._now()
        if now - self._since >= PERIOD:
            if self._unlogged:
                logger.info("{} more dead letters were not logged", self._unlogged)
            self._since, self._logged, self._unlogged = now, 0, 0
        if self._logged < LOGGED:
            self._logged += 1
            logger.info("dead letter ({}): {} for {}", reason, type(message).__name__, target or "nobody")
        else:
            self._unlogged += 1
