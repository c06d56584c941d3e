"""Getting MLX ready: the BLAS before it, then MLX and mlx-lm, once and on the compute thread.

mlx-lm's compiled samplers bind the random state of the thread that imports them, so it must be that thread.
"""

from __future__ import annotations

import functools

import msgspec

from runtime.inference.blas import Blas, load_blas


class Accelerator(msgspec.Struct, frozen=True):
    """What the node computes with."""

    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    device: str
    """The device's own name."""
    blas: Blas


@functools.cache
def prepare() -> Accelerator:
    """Load everything that generation needs; takes a second or two the first time, and nothing after.

    Whoever is first to need MLX on the compute thread calls this, because it must come before any other import of it.
    """
    import resource

    blas = load_blas()
    import mlx.core as mx

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # mlx-lm 0.32 sets the process's limits on open files to 2048 and 4096 when mlx_lm.utils is imported. The hard
    # one cannot be raised again; the soft one is given back as far as that allows, because a node needs its sockets.
    import mlx_lm.sample_utils
    import mlx_lm.utils  # noqa: F401 - imported for the thread they bind to, see above

    lowered, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(lowered, min(soft, hard)), hard))
    on_gpu = mx.default_device() == mx.gpu
    backend = "cpu" if not on_gpu else "metal" if mx.metal.is_available() else "cuda"
    if on_gpu and (limit := mx.device_info().get("max_recommended_working_set_size")) is not None:
        mx.set_wired_limit(int(limit))
    return Accelerator(backend, str(mx.device_info().get("device_name", backend)), blas)
