"""``runtime start``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from runtime.cli.options import ConfigFiles, Overrides, effective_config

if TYPE_CHECKING:
    from runtime.config.load import Config
    from runtime.http.listener import Listener
    from runtime.node import Node
    from runtime.spi.loader import Plugins


def start(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Start a node: serve models, alone or with the other nodes of its cluster.

    Without a configuration it serves on 127.0.0.1:11434 with the embedded model.
    """
    import asyncio

    from runtime.logging import set_up_logging

    settings, plugins = effective_config(config, overrides)
    set_up_logging(
        settings.log.level,
        json_lines=settings.log.json_lines,
        node=settings.node.name,
        secrets=settings.secrets(),
    )
    from runtime.node import event_loop_factory

    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        failure, abandoned = runner.run(_serve(settings, plugins))
    if failure is not None:
        raise failure
    if abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing is left to be tidied up, and what an interpreter does at its end would abort in MLX's thread.
        os._exit(0)


async def _serve(config: Config, plugins: Plugins) -> tuple[Exception | None, bool]:
    """Run the node until it is told to stop; return why, if it was not told to, and :attr:`Node.abandoned`."""
    import asyncio
    import signal

    from runtime.node import run_node

    stop = asyncio.Event()
    failures: list[Exception] = []

    def fail(failure: Exception) -> None:
        failures.append(failure)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with run_node(config, plugins, fail) as (node, listener):
        _greet(node, listener)
        await stop.wait()
    return (failures[0] if failures else None), node.abandoned


def _greet(node: Node, listener: Listener) -> None:
    """Say on standard output where the node is and how to try it."""
    key = node.config.http.api_key is not None
    lines = [
        f"Node {node.config.node.name} serves {node.config.models.default} at {' and '.join(listener.urls)}",
        "Clients must send the API key." if key else "No API key is needed.",
        "Try it:",
        *node.greetings(listener.url),
    ]
    if key:
        lines.insert(2, "The lines below read it from the environment variable RUNTIME_API_KEY.")
    typer.echo("\n".join(lines))
