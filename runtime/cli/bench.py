"""``runtime bench``."""

from __future__ import annotations

from typing import Annotated, Any

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
    load: Annotated[bool, typer.Option("--load", help="Many streams at once instead of one.")] = False,
    as_json: Json = False,
) -> None:
    """Compare a node with mlx-lm alone, and two nodes with one, on this machine.

    The model is models.default. All run in one go, in turns, on the same weights and BLAS threads.
    With --load, the nodes answer 8 to 32 streams at once, and are compared with mlx-lm's server.
    """
    import asyncio
    import os
    import sys

    from runtime.benchmark import BenchSettings, RunSettings, describe, run_bench
    from runtime.load_benchmark import describe_load, run_load

    settings, plugins = effective_config(config, overrides)
    estimator = plugins.make("memory", settings.roles.memory, settings.plugin_settings, plugin_context(settings))
    catalogue = make_catalogue(settings, plugins)
    checkpoint = asyncio.run(catalogue.fetch(settings.models.default, lambda progress: None))
    count = threads or os.cpu_count() or 1
    stage_count = stage_threads or max(1, count // 2)

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            typer.echo(text, err=True)

    if load:
        loaded = run_load(settings, checkpoint, RunSettings(tokens, rounds, count, stage_count), progress)
        _show(loaded, f"{loaded.model} on {loaded.machine}", describe_load(loaded), as_json=as_json)
        return
    bench_settings = BenchSettings(tokens, rounds, count, stage_count, prompt_tokens)
    report = run_bench(settings, checkpoint, estimator, bench_settings, progress)
    _show(report, f"{report.model} on {report.machine}, {report.blas}", describe(report), as_json=as_json)


def _show(
    report: Any, title: str, tables: list[tuple[tuple[str, ...], list[tuple[Any, ...]]]], *, as_json: bool
) -> None:
    import msgspec

    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    typer.echo(title)
    for headings, rows in tables:
        typer.echo("")
        print_table(headings, rows)
