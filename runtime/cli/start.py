"""``runtime start``."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

import typer

from runtime.cli.options import ConfigFiles, Overrides, effective_config
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from runtime.config.load import Config
    from runtime.http.listener import Listener
    from runtime.node import Node
    from runtime.spi.loader import Plugins

THREAD_SECONDS = 1.0
"""How long the threads of a node that has stopped may take to end."""
SIGNAL_SECONDS = 0.5
"""Signals this close together are one: a terminal, a supervisor and ``timeout`` may each send it."""


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
    if abandoned or _busy_threads():
        _leave(failure)
    if failure is not None:
        raise failure


def _busy_threads() -> list[str]:
    """Name the threads that an interpreter would wait for at its end, once those that are ending have ended.

    They are in plugins' calls that nobody can interrupt: a download, or a conversion.
    """
    deadline = time.monotonic() + THREAD_SECONDS
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in others if thread.is_alive()]


def _leave(failure: Exception | None) -> NoReturn:
    """End the process at once, and tell a failure as :func:`runtime.cli.main` would.

    Nothing is left to be tidied up. What an interpreter does at its end would abort in MLX's thread, and wait for the
    others for as long as they like.
    """
    if isinstance(failure, RuntimeFault):
        for line in str(failure).splitlines():
            print(f"error: {line}", file=sys.stderr)
    elif failure is not None:
        traceback.print_exception(failure)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


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
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end_at_next() -> None:
        # The system's own action needs neither this loop nor the interpreter, whatever holds them up.
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    def stop_once() -> None:
        if not stop.is_set():
            loop.call_later(SIGNAL_SECONDS, end_at_next)
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, stop_once)
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
