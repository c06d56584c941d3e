"""Numbers as people read them."""

from __future__ import annotations


def memory(count: int) -> str:
    """Write bytes in powers of 1024: ``1.5 GiB``."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def file_size(count: int) -> str:
    """Write bytes in powers of 1000, as file managers do: ``144.8 MB``."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def parameters(count: int) -> str:
    """Write a number of weights: ``134.5M``."""
    return _scaled(count, 1000, ("", "K", "M", "B", "T")).replace(" ", "")


def duration(seconds: float) -> str:
    """Write a span of time in its two largest units: ``2h 5m``, ``12s``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        # What would round up to the base belongs to the next unit.
        if abs(count) < base - 0.05:
            return f"{count:.1f} {unit}" if unit != units[0] else f"{count:.0f} {unit}"
        count /= base
    return f"{count:.1f} {units[-1]}"
