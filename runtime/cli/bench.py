"""``runtime bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime.cli.options import ConfigFiles, Json, Overrides, effective_config
from runtime.cli.output import print_json, print_table
from runtime.cli.providers import make_catalogue, plugin_context


def bench(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each contender runs.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="BLAS threads; by default one a core.")] = None,
    stage_threads: Annotated[
        int | None, typer.Option(min=1, help="BLAS threads of each node of the pair; by default half of --threads.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a node with mlx-lm alone, and two nodes with one, on this machine.

    The model is models.default. All run in one go, in turns, on the same weights and BLAS threads.
    """
    import asyncio
    import os
    import sys

    import msgspec

    from runtime.benchmark import BenchSettings, describe, run_bench

    settings, plugins = effective_config(config, overrides)
    estimator = plugins.make("memory", settings.roles.memory, settings.plugin_settings, plugin_context(settings))
    catalogue = make_catalogue(settings, plugins)
    checkpoint = asyncio.run(catalogue.fetch(settings.models.default, lambda progress: None))
    count = threads or os.cpu_count() or 1
    report = run_bench(
        settings,
        checkpoint,
        estimator,
        BenchSettings(prompt_tokens, tokens, rounds, count, stage_threads or max(1, count // 2)),
        lambda text: typer.echo(text, err=True) if sys.stderr.isatty() else None,
    )
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    typer.echo(f"{report.model} on {report.machine}, {report.blas}")
    for headings, rows in describe(report):
        typer.echo("")
        print_table(headings, rows)
