"""``runtime families``."""

from __future__ import annotations

import msgspec
import typer

from runtime.cli.options import ConfigFiles, Json, Overrides, effective_config
from runtime.cli.output import print_json, print_table
from runtime.cli.providers import make_families


def families(config: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False) -> None:
    """List the architectures of the installed mlx-lm: which family runs each, and how, or why none does."""
    from runtime.inference import installed

    found = installed.support(make_families(*effective_config(config, overrides)))
    if as_json:
        print_json([msgspec.to_builtins(each) for each in found])
        return
    print_table(("MODULE", "FAMILY", "HOW"), ((each.module, each.family, each.how) for each in found))
    running = sum(each.family is not None for each in found)
    typer.echo(f"\n{running} of the {len(found)} architectures of mlx-lm {installed.version()} run")
