"""``runtime config show``."""

from __future__ import annotations

import typer

from runtime.cli.options import ConfigFiles, Json, Overrides, effective_config
from runtime.cli.output import print_json, print_table

config = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show the effective configuration.",
)


@config.callback()
def _sub_verbs() -> None:
    # Without a callback typer would make `show`, the only sub-verb, the verb itself.
    pass


@config.command()
def show(files: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print every key with its value and where that comes from. Secrets are masked."""
    effective, _ = effective_config(files, overrides)
    rows = effective.rows()
    if as_json:
        print_json({row.key: {"value": row.value, "origin": row.origin} for row in rows})
    else:
        print_table(("KEY", "VALUE", "ORIGIN"), rows)
