"""Which BLAS a process computes with; each in a process of its own, because it is chosen once."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems bring their own BLAS")
HAS_OPENBLAS = importlib.util.find_spec("ngsolve_openblas") is not None


def run(program: str, **env: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MULTIPLY = """
    import json, msgspec
    from runtime.inference.blas import load_blas
    blas = load_blas()
    import numpy as np
    import mlx.core as mx
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
    product = np.asarray(mx.array(a) @ mx.array(b))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    libraries = {line.split()[-1] for line in open("/proc/self/maps") if "blas" in line}
    print(json.dumps({
        "blas": msgspec.to_builtins(blas),
        "error": float(np.abs(product - exact).max()),
        "libraries": sorted(libraries),
    }))
"""


@pytest.mark.skipif(not HAS_OPENBLAS, reason="ngsolve-openblas is not installed")
def test_openblas_is_loaded_before_mlx_and_multiplies_right() -> None:
    found = run(MULTIPLY)
    assert "OpenBLAS" in found["blas"]["name"]
    assert found["blas"]["advice"] is None
    assert found["blas"]["threads"] >= 1
    assert found["error"] < 1e-3
    assert any("openblas" in library.lower() for library in found["libraries"])


@pytest.mark.skipif(not HAS_OPENBLAS, reason="ngsolve-openblas is not installed")
def test_the_number_of_threads_is_bounded_as_usual() -> None:
    assert run(MULTIPLY, OPENBLAS_NUM_THREADS="1")["blas"]["threads"] == 1


@pytest.mark.skipif(not HAS_OPENBLAS, reason="ngsolve-openblas is not installed")
def test_a_stray_folder_named_mlx_on_the_path_does_not_hide_the_library(tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "notes.txt").write_text("not a package")
    found = run(MULTIPLY, PYTHONPATH=os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    assert "OpenBLAS" in found["blas"]["name"]
    assert found["error"] < 1e-3


def test_without_any_library_the_reference_is_used_and_advice_given() -> None:
    found = run("""
        import json, msgspec
        from runtime.inference import blas
        blas.SYSTEM_LIBRARIES = ("libnosuchblas.so.9",)
        blas._bundled_library = lambda: None
        print(json.dumps(msgspec.to_builtins(blas.load_blas())))
    """)
    assert found["name"] == "reference"
    assert "ngsolve-openblas" in found["advice"]


def test_a_library_without_the_interface_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "libempty.so").write_bytes(b"not a library")
    found = run(f"""
        import json, msgspec
        from runtime.inference import blas
        blas.SYSTEM_LIBRARIES = ({str(tmp_path / "libempty.so")!r}, "libc.so.6")
        blas._bundled_library = lambda: None
        print(json.dumps(msgspec.to_builtins(blas.load_blas())))
    """)
    assert found["name"] == "reference"


def test_mlx_that_was_imported_before_is_said() -> None:
    found = run("""
        import json, msgspec
        import mlx.core
        from runtime.inference.blas import load_blas
        print(json.dumps(msgspec.to_builtins(load_blas())))
    """)
    assert "imported before" in found["advice"]


def test_preparing_twice_answers_the_same() -> None:
    found = run("""
        import json, msgspec
        from runtime.inference.accelerator import prepare
        first, second = prepare(), prepare()
        print(json.dumps([first == second, msgspec.to_builtins(second)]))
    """)
    assert found[0] is True
    assert found[1]["backend"] in ("cpu", "metal", "cuda")


@pytest.mark.parametrize("hard", [1024, 4096, 5000])
@pytest.mark.parametrize("soft", [1024, 3000, 5000])
def test_preparing_lowers_no_limit_on_open_files_and_works_under_a_low_one(soft: int, hard: int) -> None:
    if soft > hard:
        pytest.skip("a soft limit is never above the hard one")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip(f"this process may not have {hard} open files")
    found = run(f"""
        import json, resource
        from runtime.inference.accelerator import prepare
        setrlimit = resource.setrlimit
        setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
        prepare()
        print(json.dumps([*resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit is setrlimit]))
    """)
    assert found == [max(soft, min(2048, hard)), hard, True]
