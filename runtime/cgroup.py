"""What a container's limit leaves of the machine's memory: control groups of Linux, both versions.

https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
A group is bound by its own limit and by those of every group above it. Files that are cached count as used there; the
kernel gives them up before it kills anyone, so those that nobody has used lately are not counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60
"""Version 1 says "no limit" with a number close to the largest there is."""


class _Files(NamedTuple):
    """The names that a version has for the same things."""

    limit: str
    used: str
    inactive: str
    """Field of ``memory.stat``."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def headroom(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Return the bytes that this process's groups still let it have, or None where none has a limit.

    Args:
        root: where the groups are mounted.
        membership: the file that says which of them this process is in.
    """
    found = [left for files, folder in _groups(root, membership) if (left := _left(files, folder)) is not None]
    return min(found, default=None)


def _groups(root: Path, membership: Path) -> Iterator[tuple[_Files, Path]]:
    """Yield the process's groups that bound memory, from the inmost out. Without control groups there are none."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files, base = (_V1, root / "memory") if controllers else (_V2, root)
        group = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, and what is mounted the container's own group.
        for part in (group, *group.parents):
            yield files, base / part


def _left(files: _Files, folder: Path) -> int | None:
    limit, used = _number(folder / files.limit), _number(folder / files.used)
    if limit is None or used is None or limit >= NO_LIMIT:
        return None
    return max(0, limit - used + _inactive(folder / "memory.stat", files.inactive))


def _number(file: Path) -> int | None:
    """Return what a file says; None if there is no such file, or if it says ``max``."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _inactive(file: Path, field: str) -> int:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(values.get(field, "0"))
