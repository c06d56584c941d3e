"""Getting MLX ready: the BLAS before it, then MLX and mlx-lm, once and on the compute thread.

mlx-lm's compiled samplers bind the random state of the thread that imports them, so it must be that thread.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from runtime.inference.blas import Blas, load_blas


class Accelerator(msgspec.Struct, frozen=True):
    """What the node computes with."""

    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    device: str
    """The device's own name."""
    blas: Blas
    working_set: int | None = None
    """Bytes that the GPU should have allocated at most, so that nothing is swapped; None where that is no matter."""


@functools.cache
def prepare() -> Accelerator:
    """Load everything that generation needs; takes a second or two the first time, and nothing after.

    Whoever is first to need MLX on the compute thread calls this, because it must come before any other import of it.
    """
    blas = load_blas()
    import mlx.core as mx

    with _limits_kept():
        import mlx_lm.sample_utils
        import mlx_lm.utils  # noqa: F401 - imported for the thread they bind to, see above

    on_gpu = mx.default_device() == mx.gpu
    backend = "cpu" if not on_gpu else "metal" if mx.metal.is_available() else "cuda"
    limit = mx.device_info().get("max_recommended_working_set_size") if on_gpu else None
    if limit is not None:
        mx.set_wired_limit(int(limit))
    working_set = None if limit is None else int(limit)
    return Accelerator(backend, str(mx.device_info().get("device_name", backend)), blas, working_set)


def is_prepared() -> bool:
    """Whether :func:`prepare` has been called, so that any thread may import mlx-lm."""
    return prepare.cache_info().currsize > 0


def held_bytes() -> int:
    """Return the bytes that MLX holds: the arrays there are, and what it keeps for the next ones. For any thread."""
    if not is_prepared():
        return 0
    import mlx.core as mx

    return int(mx.get_active_memory() + mx.get_cache_memory())


def working_set_left() -> int | None:
    """Return the bytes that the GPU's working set still has room for; None without such a bound, or not known yet."""
    if not is_prepared():
        return None
    limit = prepare().working_set
    return None if limit is None else max(0, limit - held_bytes())


@contextmanager
def _limits_kept() -> Iterator[None]:
    """Let no import lower this process's limits, or fail because they cannot be raised.

    mlx-lm 0.32 calls ``setrlimit(RLIMIT_NOFILE, (2048, 4096))`` when mlx_lm.utils is imported. That fails under
    a hard limit below 4096, and otherwise lowers one that cannot be raised again; a node needs its sockets.
    """
    setrlimit = resource.setrlimit

    def raise_soft(limit: int, wanted: tuple[int, int]) -> None:
        soft, hard = resource.getrlimit(limit)
        enough = wanted[0] if hard == resource.RLIM_INFINITY else min(wanted[0], hard)
        if soft != resource.RLIM_INFINITY and soft < enough:
            setrlimit(limit, (enough, hard))

    resource.setrlimit = raise_soft
    try:
        yield
    finally:
        resource.setrlimit = setrlimit
