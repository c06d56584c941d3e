"""The hooks. Each is synchronous, is called once at start, and gets a ``register`` callback.

A hook registers factories, not providers: only what the configuration selects is made. A factory receives the
plugin's validated settings (the model it registered with :func:`register_settings`, else None) and a
:class:`PluginContext`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import pluggy

from runtime.spi.commands import Command
from runtime.spi.discovery import Discovery
from runtime.spi.family import ModelFamily
from runtime.spi.frontend import Frontend
from runtime.spi.memory import MemoryEstimator
from runtime.spi.placement import PlacementPolicy
from runtime.spi.source import ModelSource
from runtime.spi.telemetry import Telemetry

if TYPE_CHECKING:
    from pydantic import BaseModel

PROJECT = "runtime"
ENTRY_POINT_GROUP = "runtime.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class PluginContext(msgspec.Struct, frozen=True):
    """What every factory may know of the node."""

    node: str
    data_dir: Path
    """Folder for what outlasts the process (``node.data_dir``). A plugin keeps its files in a sub-folder that carries
    its name. The nodes of one user share it, so a file is written aside and then renamed."""
    model_paths: tuple[Path, ...] = ()
    """Folders in which the user keeps models (``models.path``), in the order to look."""


ProviderT = TypeVar("ProviderT", covariant=True)


class Factory(Protocol[ProviderT]):
    """Makes a provider. Called once, when the configuration selects its name."""

    def __call__(self, settings: Any, context: PluginContext) -> ProviderT: ...


@hookspec
def register_settings(register: Callable[[type[BaseModel]], None]) -> None:
    """Register the pydantic model of the section ``plugins.<plugin>``. Import pydantic inside the hook."""


@hookspec
def register_discovery(register: Callable[[str, Factory[Discovery]], None]) -> None:
    """Register ways to find peers; ``roles.discovery`` chooses one."""


@hookspec
def register_placement(register: Callable[[str, Factory[PlacementPolicy]], None]) -> None:
    """Register placement policies; ``roles.placement`` chooses one."""


@hookspec
def register_memory(register: Callable[[str, Factory[MemoryEstimator]], None]) -> None:
    """Register memory estimators; ``roles.memory`` chooses one."""


@hookspec
def register_source(register: Callable[[str, Factory[ModelSource]], None]) -> None:
    """Register model sources; ``roles.sources`` lists those in use, in the order they are asked."""


@hookspec
def register_family(register: Callable[[str, Factory[ModelFamily]], None]) -> None:
    """Register model families; ``roles.families`` lists those in use, in the order they are asked."""


@hookspec
def register_frontend(register: Callable[[str, Factory[Frontend]], None]) -> None:
    """Register API frontends; ``roles.frontends`` lists those that are served."""


@hookspec
def register_telemetry(register: Callable[[str, Factory[Telemetry]], None]) -> None:
    """Register telemetry; ``roles.telemetry`` lists those in use."""


@hookspec
def register_commands(register: Callable[[Command], None]) -> None:
    """Register verbs of the command line. Called for every invocation of ``runtime``: import nothing slow."""
