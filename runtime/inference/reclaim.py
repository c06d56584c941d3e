"""Giving freed memory back to the system. Runs on the compute thread."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable

TRIM_EVERY = 32 << 20
"""Bytes loaded between two trims."""


def reclaim() -> None:
    """Collect garbage, and give back what MLX and the C library keep for reuse."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    trim()


def trim() -> None:
    """Give back what glibc's allocator holds: after a load, which frees much, that can be a tenth of the model."""
    release = _malloc_trim()
    if release is not None:
        release(0)


def trimming(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Wrap a progress callback so that memory is given back as loading goes on, which keeps the peak down."""
    last = 0

    def report(done: int, total: int) -> None:
        nonlocal last
        if done - last >= TRIM_EVERY:
            last = done
            trim()
        progress(done, total)

    return report


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``; other C libraries have none, and give memory back by themselves."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
