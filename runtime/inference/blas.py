"""A fast BLAS for MLX on a Linux CPU.

MLX's Linux wheel links the reference BLAS, which is tens of times slower than OpenBLAS. The dynamic linker resolves
``cblas_sgemm`` to the first library in the global scope that has it, so one loaded with ``RTLD_GLOBAL`` *before*
``mlx.core`` takes the reference's place. Only float32 matrix products go through BLAS there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path

import msgspec

SYSTEM_LIBRARIES = ("libopenblas.so.0", "libblis.so.4", "libmkl_rt.so.2")
"""Shared libraries that export plain ``cblas_*``, as distributions name them."""

ADVICE = (
    "MLX computes with the reference BLAS, which is more than 10 times slower than need be: "
    "install the package ngsolve-openblas, or your system's OpenBLAS (libopenblas0)"
)


class Blas(msgspec.Struct, frozen=True):
    """The BLAS in use, for the log and ``runtime status``."""

    name: str
    """As the library describes itself, or ``reference``, ``Accelerate``."""
    path: str | None
    threads: int | None
    advice: str | None = None
    """What would make it faster."""


def load_blas() -> Blas:
    """Load the best BLAS there is into the process; call before anything imports ``mlx.core``.

    ``OPENBLAS_NUM_THREADS`` bounds its threads, as usual.
    """
    if sys.platform == "darwin":
        return Blas("Accelerate", None, None)
    if "mlx.core" in sys.modules:
        return Blas("reference", None, None, "mlx was imported before the runtime could load a BLAS; " + ADVICE)
    for candidate in SYSTEM_LIBRARIES:
        found = _load(candidate)
        if found is not None:
            return found
    bundled = _bundled_library()
    if bundled is not None:
        found = _load(str(bundled)) or _load_beside_fortran(bundled)
        if found is not None:
            return found
    return Blas("reference", None, None, ADVICE)


def _load(path: str) -> Blas | None:
    """Load a library into the global scope and describe it; None if it is not there or needs what is not there."""
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    except OSError:
        return None
    if not hasattr(library, "cblas_sgemm"):
        return None
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        name = library.openblas_get_config().decode(errors="replace")
        return Blas(name, path, int(library.openblas_get_num_threads()))
    return Blas(Path(path).name, path, None)


def _bundled_library() -> Path | None:
    """Return the OpenBLAS of the package ngsolve-openblas, without importing it: its import prints on failure."""
    spec = importlib.util.find_spec("ngsolve_openblas")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("**/libopenblas*.so*"))), None)


def _load_beside_fortran(library: Path) -> Blas | None:
    """Load a library that wants ``libgfortran.so.5`` on a system without one.

    ngsolve-openblas 0.3.33 needs libgfortran and does not carry it; MLX's CPU wheel carries it under a mangled name.
    The library's run path is its own folder, so links to both in one folder satisfy the linker, and can be removed
    as soon as they are loaded.
    """
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        return None
    # mlx is a namespace package: a stray folder of that name on the path is one of its locations too.
    folders = [Path(location).parent / "mlx_cpu.libs" for location in spec.submodule_search_locations]
    fortran = next((file for folder in folders for file in folder.glob("libgfortran-*.so.5*")), None)
    if fortran is None:
        return None
    with tempfile.TemporaryDirectory(prefix="runtime-blas-") as folder:
        links = Path(folder)
        (links / "libopenblas.so.0").symlink_to(library.resolve())
        (links / "libgfortran.so.5").symlink_to(fortran.resolve())
        for other in fortran.parent.glob("libquadmath-*"):
            (links / other.name).symlink_to(other.resolve())
        found = _load(str(links / "libopenblas.so.0"))
    return None if found is None else msgspec.structs.replace(found, path=str(library))


def backend_name() -> str:
    """Return ``metal``, ``cuda`` or ``cpu`` without importing MLX, from the packages that are installed."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    if any(importlib.util.find_spec(name) is not None for name in ("mlx_cuda", "mlx_cuda_12", "mlx_cuda_13")):
        return "cuda"
    return "cpu"
