"""The address of an actor, the same value on every node."""

from __future__ import annotations

import msgspec

CURRENT = 0
"""The incarnation that stands for "whoever lives at this path now"; for well-known names only."""


class ActorRef(msgspec.Struct, frozen=True, order=True):
    """Where an actor lives: the node's name, the path on it, and which life of that path is meant.

    A restart by the supervisor keeps the incarnation, because it keeps the mailbox. An actor spawned anew at the
    same path, or on a node that came back, has another one, so that a stale reference never reaches it.
    """

    node: str
    path: str
    incarnation: int = CURRENT

    def __str__(self) -> str:
        return f"{self.node}{self.path}"
