"""``runtime version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import typer

from runtime import __version__
from runtime.cli.options import Json
from runtime.cli.output import print_json

_NAMED = ("mlx", "mlx-lm", "websockets", "fastapi", "pydantic")
"""Packages whose versions a bug report should have."""


def version(as_json: Json = False) -> None:
    """Print the version.

    With --json, the versions of Python, the platform and the packages that matter most as well.
    """
    if not as_json:
        typer.echo(f"runtime {__version__}")
        return
    print_json(
        {
            "runtime": __version__,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": {name: _installed(name) for name in _NAMED},
        }
    )


def _installed(name: str) -> str | None:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None
