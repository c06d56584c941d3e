"""Options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runtime.config.load import Config
    from runtime.spi.loader import Plugins

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", metavar="FILE", help="A TOML file; may be repeated, the later over the earlier."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="A.B=C", help="Set one key, over files and environment; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def effective_config(files: Sequence[Path] | None, overrides: Sequence[str] | None) -> tuple[Config, Plugins]:
    """Load the configuration that a verb was given, and the plugins that it does not disable.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    from runtime.config.load import load_settings

    plugins = enabled_plugins(files, overrides)
    return load_settings(files or (), overrides or (), os.environ, plugins), plugins


def enabled_plugins(files: Sequence[Path] | None, overrides: Sequence[str] | None) -> Plugins:
    """Load the plugins that the configuration does not disable, without checking the rest of it.

    Raises:
        ConfigError: a file or an override cannot be read.
    """
    from runtime.config.sources import disabled_plugins, read_layers
    from runtime.spi.loader import load_plugins

    return load_plugins(disabled_plugins(read_layers(files or (), overrides or (), os.environ)))
