"""The command ``runtime``: finds the verb that was asked for, and imports only that one.

To add a verb, write ``runtime/cli/<verb>.py`` with a typer function (or a ``typer.Typer`` of sub-verbs) that has the
verb's name, and add its line to :data:`VERBS`. What is slow to import goes inside the function.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from runtime.spi.commands import Command

VERBS = {
    "start": "Start a node: serve models, alone or with the other nodes of its cluster.",
    "run": "Ask a model, or talk with it.",
    "ls": "List the models on a node's machine.",
    "ps": "List the models being served, and which node holds which layers.",
    "plan": "Show where a model's layers would go, what they need there, and why; nothing is loaded.",
    "status": "Describe a node: version, backend, memory, and what it serves.",
    "nodes": "List the nodes, as one of them sees the others.",
    "actors": "List the living actors of a node as a tree, and the messages that reached none.",
    "plugins": "List the plugins, their versions, hooks and status.",
    "families": "List the architectures of the installed mlx-lm: which family runs each, and how, or why none does.",
    "check": "Prove that a model computes the same cut into stages as it does whole.",
    "config": "Show the effective configuration.",
    "bench": "Compare a node with mlx-lm alone, and two nodes with one, on this machine.",
    "version": "Print the version.",
}
"""The built-in verbs in the order of the help, each with the first line of its docstring."""


class Verbs(TyperGroup):
    """The verbs of the table and those of the plugins, imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all verbs."""
        del ctx
        return [*VERBS, *plugin_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        """Import a verb. An unknown one is told with the nearest that exists."""
        if cmd_name in VERBS:
            return _command(cmd_name, getattr(importlib.import_module(f"runtime.cli.{cmd_name}"), cmd_name))
        if cmd_name.startswith("-"):
            return None
        offered = plugin_commands()
        if cmd_name in offered:
            return _command(cmd_name, offered[cmd_name].function)
        near = difflib.get_close_matches(cmd_name, [*VERBS, *offered], n=1)
        ctx.fail(f"there is no command {cmd_name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs into the help without importing the built-in ones."""
        del ctx
        rows = [*VERBS.items(), *((name, _summary(each.function)) for name, each in plugin_commands().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    # rich would draw boxes around the help, and takes as long to import as everything else here.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from runtime import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Join several ordinary machines to run one language model."""
    del version


@cache
def plugin_commands() -> dict[str, Command]:
    """Return the verbs that plugins add. One that has the name of a built-in verb is refused with a message."""
    from runtime.config.sources import disabled_plugins, read_environment
    from runtime.spi.loader import load_plugins

    plugins = load_plugins(disabled_plugins([read_environment(os.environ)]), commands_only=True)
    offered: dict[str, Command] = {}
    for name, (plugin, command) in plugins.commands().items():
        if name in VERBS:
            typer.echo(f"warning: plugin {plugin} offers the command {name!r}, which is built in; refused", err=True)
        else:
            offered[name] = command
    return offered


def _command(name: str, verb: Callable[..., Any] | typer.Typer) -> TyperCommand | TyperGroup:
    if isinstance(verb, typer.Typer):
        single = verb
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(verb)
    command = typer.main.get_command(single)
    assert isinstance(command, TyperCommand | TyperGroup), "typer makes no other kinds"  # noqa: S101 - for the types
    return command


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
