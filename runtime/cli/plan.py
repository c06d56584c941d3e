"""``runtime plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.cli.options import ConfigFiles, Json, Overrides, effective_config
from runtime.cli.output import print_json, print_table
from runtime.cli.quantities import file_size, memory
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect

if TYPE_CHECKING:
    from runtime.inference.report import PlanReport


def plan(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    nodes: Annotated[
        Path | None,
        typer.Option("--nodes", metavar="FILE", help="Plan for the machines of this TOML file; no node is asked."),
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens a sequence, instead of models.context.")] = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show where a model's layers would go, what they need there, and why; nothing is loaded.

    A running node plans for its cluster as it is now. With --nodes the plan is made here, with the configuration of
    --config and --set.
    """
    import msgspec

    from runtime.inference.report import PlanReport

    if nodes is not None:
        report = _plan_here(model, nodes, context, config, overrides)
    elif config or overrides:
        raise typer.BadParameter("--config and --set go with --nodes; a running node has a configuration of its own")
    else:
        with connect(url, api_key) as node:
            report = msgspec.convert(node.plan(model, context), PlanReport)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _show(report)


def _plan_here(model: str, file: Path, context: int | None, config: ConfigFiles, overrides: Overrides) -> PlanReport:
    """Plan without a node, for the machines that a file names."""
    import asyncio

    from runtime.cli.nodes_file import read_nodes
    from runtime.inference.catalogue import Catalogue
    from runtime.inference.planning import Measures, PlacingSettings, Planner
    from runtime.inference.report import describe
    from runtime.spi import Checkpoint, LoadOptions, NodeView
    from runtime.spi.hookspecs import PluginContext

    settings, plugins = effective_config(config, overrides)
    given = read_nodes(file)
    role = settings.roles
    own = PluginContext(node=settings.node.name, data_dir=settings.node.data_dir, model_paths=settings.models.path)
    planner = Planner(
        plugins.make("placement", role.placement, settings.plugin_settings, own),
        plugins.make("memory", role.memory, settings.plugin_settings, own),
        PlacingSettings.of(settings.models),
    )
    sources = {name: plugins.make("source", name, settings.plugin_settings, own) for name in role.sources}
    views = given.views(int(settings.models.memory_reserve), role.families)

    async def survey(checkpoint: Checkpoint, options: LoadOptions, among: tuple[NodeView, ...]) -> Measures:
        del options, among
        return given.measures(checkpoint.num_layers)

    async def planned() -> PlanReport:
        checkpoint = (await Catalogue(sources).open(model, lambda progress: None)).checkpoint
        return describe(await planner.plan(model, checkpoint, views, survey, context=context), views)

    return asyncio.run(planned())


def _chunks(report: PlanReport) -> str:
    text = f"prompts in chunks of {report.prefill_chunk}"
    if report.prefill_chunk < report.prefill_chunk_asked:
        text += f" (memory is short for {report.prefill_chunk_asked})"
    return text


def _show(report: PlanReport) -> None:
    typer.echo(
        f"{report.model}: {report.layers} layers in {report.dtype}{', expanded' if report.dequantize else ''}, "
        f"{report.sequences} sequences of {report.context} tokens, {_chunks(report)}"
    )
    for reason in report.reason.split("; "):
        typer.echo(f"- {reason}")
    typer.echo("")
    print_table(
        ("STAGE", "LAYERS", "NEEDS", "OF WHICH"),
        (
            (
                stage.node,
                f"{stage.first_layer}-{stage.last_layer}",
                memory(stage.bytes),
                [f"{part.name} {memory(part.bytes)}" for part in stage.parts if part.bytes],
            )
            for stage in report.stages
        ),
    )
    typer.echo("")
    print_table(
        ("NODE", "BACKEND", "AVAILABLE", "RESERVE", "GRANTED", "GRANTABLE", "TAKES", "A TOKEN ALONE"),
        (
            (
                node.name,
                node.backend,
                memory(node.available),
                memory(node.reserve),
                memory(node.granted),
                memory(node.grantable),
                memory(node.takes) if node.takes else None,
                None if node.decode is None else f"{node.decode * 1000:.1f} ms",
            )
            for node in report.nodes
        ),
    )
    if report.links:
        typer.echo("")
        print_table(
            ("LINK", "TO", "LATENCY", "BANDWIDTH"),
            (
                (link.sender, link.receiver, f"{link.latency * 1000:.2f} ms", f"{file_size(int(link.bandwidth))}/s")
                for link in report.links
            ),
        )
