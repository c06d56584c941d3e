"""Plugin ``sample``: says hello over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import Command, hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from runtime.spi import Frontend
    from runtime.spi.hookspecs import Factory, PluginContext


@hookimpl
def register_settings(register: Callable[[type[BaseModel]], None]) -> None:
    """Register the section ``plugins.sample``."""
    from runtime_sample_echo.settings import SampleSettings

    register(SampleSettings)


@hookimpl
def register_frontend(register: Callable[[str, Factory[Frontend]], None]) -> None:
    """Register the frontend."""
    register("sample", _frontend)


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """Register the command."""
    register(Command("sample-hello", hello))


def _frontend(settings: Any, context: PluginContext) -> Frontend:
    from runtime_sample_echo.frontend import SampleFrontend

    return SampleFrontend(settings, context.node)


def hello(name: str = "world") -> None:
    """Say hello from the sample plugin."""
    import typer

    typer.echo(f"hello, {name}")
