"""What nodes hold when nothing runs and no model is loaded: after all that they went through, no more than before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from runtime.testing.processes import NodeProcess

FILES = 4
"""Open descriptors that may be more: connections that are just being opened or closed."""
RESIDENT = 96 << 20
"""Bytes that may be more: what allocators keep. Every round allocates several times as much for the model."""


class Leftovers(msgspec.Struct, frozen=True):
    """What one node holds."""

    node: str
    pid: int
    actors: int
    reserved: int
    """Bytes."""
    files: int
    """Open descriptors."""
    resident: int
    """Bytes."""


def leftovers(node: NodeProcess) -> Leftovers:
    """Measure what a node holds."""
    status = node.get("status")
    pid = node.process.pid
    return Leftovers(
        node=node.name,
        pid=pid,
        actors=actors(node),
        reserved=int(status["memory_reserved"]),
        files=len(os.listdir(f"/proc/{pid}/fd")),
        resident=int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    )


def actors(node: NodeProcess) -> int:
    """Count the living actors of a node."""
    return len(node.get("actors")["actors"])


def lives(measured: Sequence[Leftovers]) -> list[tuple[Leftovers, Leftovers]]:
    """Return the first and the last measurement of each life of a node that was measured more than once."""
    by_pid: dict[int, list[Leftovers]] = {}
    for each in measured:
        by_pid.setdefault(each.pid, []).append(each)
    return [(life[0], life[-1]) for life in by_pid.values() if len(life) > 1]


def leaks(measured: Sequence[Leftovers]) -> list[str]:
    """Say what nodes hold that they did not hold at first."""
    found = []
    for first, last in lives(measured):
        for what, before, after, slack in (
            ("actors", first.actors, last.actors, 0),
            ("reserved bytes", 0, last.reserved, 0),
            ("open descriptors", first.files, last.files, FILES),
            ("resident bytes", first.resident, last.resident, RESIDENT),
        ):
            if after > before + slack:
                found.append(f"node {first.node}: {after} {what} after {before}")
    return found
