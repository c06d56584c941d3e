"""How a plugin adds a verb to the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Command(msgspec.Struct, frozen=True):
    """A verb of ``runtime``: the function is a typer command, its docstring the help."""

    name: str
    function: Callable[..., Any]
