"""Finds, checks and loads plugins, and makes the providers that the configuration selects.

A plugin is an entry point of the group ``runtime.plugins``; the built-in ones are listed there like any other. Each
is imported and asked to register behind a guard, so a broken one costs itself and nothing else: its record keeps
the reason, and the reason is logged. Nothing is decided by the order in which plugins happen to be found: where two
claim one name, both are refused and both are named.
"""

from __future__ import annotations

import difflib
import logging
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pluggy

from runtime.errors import PluginError, RuntimeFault
from runtime.spi import hookspecs
from runtime.spi.commands import Command
from runtime.spi.discovery import Discovery
from runtime.spi.family import ModelFamily
from runtime.spi.frontend import Frontend
from runtime.spi.hookspecs import ENTRY_POINT_GROUP, PROJECT, Factory, PluginContext
from runtime.spi.memory import MemoryEstimator
from runtime.spi.placement import PlacementPolicy
from runtime.spi.source import ModelSource
from runtime.spi.telemetry import Telemetry

if TYPE_CHECKING:
    from pydantic import BaseModel

Role = Literal["discovery", "placement", "memory", "source", "family", "frontend", "telemetry"]

ROLES: Mapping[Role, type[object]] = {
    "discovery": Discovery,
    "placement": PlacementPolicy,
    "memory": MemoryEstimator,
    "source": ModelSource,
    "family": ModelFamily,
    "frontend": Frontend,
    "telemetry": Telemetry,
}
"""What a provider of each role must be an instance of. The hook of a role is ``register_<role>``."""

_NOUNS: Mapping[Role, str] = {
    "discovery": "discovery",
    "placement": "placement policy",
    "memory": "memory estimator",
    "source": "model source",
    "family": "model family",
    "frontend": "frontend",
    "telemetry": "telemetry",
}

COMMANDS_HOOK = "register_commands"
SETTINGS_HOOK = "register_settings"
HOOKS = (SETTINGS_HOOK, *(f"register_{role}" for role in ROLES), COMMANDS_HOOK)

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")
_PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")  # it is also a TOML key and a part of a variable's name

# The standard library's logging: this module must import nothing slow, and the node routes it to the log.
_log = logging.getLogger(__name__)


class PluginRecord(msgspec.Struct, frozen=True):
    """One plugin as it was found, and what became of it."""

    name: str
    module: str
    distribution: str
    version: str
    hooks: tuple[str, ...]
    """The hooks that it implements; empty when it was not imported."""
    status: Literal["loaded", "disabled", "failed"]
    reason: str = ""
    """Why it failed or is disabled."""


@dataclass
class _Plugin:
    """A plugin while it is being loaded, and afterwards what it registered."""

    record: PluginRecord
    entry: EntryPoint
    hooks: pluggy.PluginManager | None = None
    providers: dict[tuple[Role, str], Factory[Any]] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    settings: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        return self.record.name

    def loaded(self) -> bool:
        return self.record.status == "loaded"

    def fail(self, reason: str, error: BaseException | None = None) -> None:
        """Mark the plugin failed, keep the reason, and log it; the traceback is logged for who debugs."""
        self.record = msgspec.structs.replace(self.record, status="failed", reason=reason)
        _log.warning("plugin %s of %s failed: %s", self.name, self.record.distribution, reason)
        if error is not None:
            _log.debug("plugin %s failed here", self.name, exc_info=error)


class Plugins:
    """The plugins of this process. Made by :func:`load_plugins`."""

    def __init__(self, plugins: Iterable[_Plugin]) -> None:
        self._plugins = tuple(plugins)
        self._providers: dict[tuple[Role, str], tuple[_Plugin, Factory[Any]]] = {
            key: (plugin, factory)
            for plugin in self._plugins
            if plugin.loaded()
            for key, factory in plugin.providers.items()
        }

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, ordered by name."""
        return tuple(plugin.record for plugin in self._plugins)

    def settings_models(self) -> dict[str, type[BaseModel]]:
        """Return the settings model of each loaded plugin that registered one."""
        return {
            plugin.name: plugin.settings for plugin in self._plugins if plugin.loaded() and plugin.settings is not None
        }

    def commands(self) -> dict[str, tuple[str, Command]]:
        """Return the registered commands by name, each with the plugin that it comes from."""
        return {
            name: (plugin.name, command)
            for plugin in self._plugins
            if plugin.loaded()
            for name, command in plugin.commands.items()
        }

    def names(self, role: Role) -> tuple[str, ...]:
        """Return the names of the providers of a role, sorted."""
        return tuple(sorted(name for known, name in self._providers if known == role))

    def plugin_of(self, role: Role, name: str) -> str:
        """Return the name of the plugin that registered a provider.

        Raises:
            PluginError: there is no such provider; the message says what there is, and why a plugin of that name
                offers nothing.
        """
        found = self._providers.get((role, name))
        if found is None:
            raise PluginError(self._missing(role, name))
        return found[0].name

    def make(self, role: Role, name: str, settings: Mapping[str, BaseModel], context: PluginContext) -> Any:
        """Make a provider with the settings of the plugin that registered it.

        Args:
            role: what the provider is for.
            name: the name it was registered with.
            settings: validated settings by plugin name; a plugin without an entry gets None.
            context: handed to the factory.

        Raises:
            PluginError: there is no such provider, its factory failed, or made something else than the role asks.
        """
        plugin = self.plugin_of(role, name)
        factory = self._providers[role, name][1]
        try:
            provider = factory(settings.get(plugin), context)
        except RuntimeFault:
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {plugin} failed to make the {_NOUNS[role]} {name!r}: {_reason(error)}"
            ) from error
        if not isinstance(provider, ROLES[role]):
            raise PluginError(
                f"plugin {plugin} made a {type(provider).__name__} for the {_NOUNS[role]} {name!r}; "
                f"it must be a runtime.spi.{ROLES[role].__name__}"
            )
        return provider

    def _missing(self, role: Role, name: str) -> str:
        known = self.names(role)
        message = f"there is no {_NOUNS[role]} called {name!r}"
        blamed = [
            plugin.record
            for plugin in self._plugins
            if not plugin.loaded() and (plugin.name == name or (role, name) in plugin.providers)
        ]
        if blamed:
            why = "; ".join(
                f"plugin {record.name} failed: {record.reason}"
                if record.status == "failed"
                else f"plugin {record.name} is {record.reason}"
                for record in blamed
            )
            return f"{message}, because {why}"
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if nearest:
            message += f"; the nearest is {nearest[0]!r}"
        message += f"; known: {', '.join(known) or 'none'}"
        # A plugin that could not even be imported may have meant to register the name.
        failed = [plugin.name for plugin in self._plugins if plugin.record.status == "failed"]
        return message + (f"; plugins that failed: {', '.join(failed)} (see `runtime plugins`)" if failed else "")


def load_plugins(disabled: Collection[str] = (), *, commands_only: bool = False) -> Plugins:
    """Import every installed plugin that is not disabled, check its hooks, and let it register.

    With ``commands_only``, no hook but ``register_commands`` is called: enough for the command line's help, and
    quick. A plugin that cannot be used does not raise here; its record says why.
    """
    plugins = _discover()
    for plugin in plugins:
        if plugin.name in disabled:
            plugin.record = msgspec.structs.replace(plugin.record, status="disabled", reason="disabled in the config")
    _refuse_duplicate_names(plugins)
    hooks = (COMMANDS_HOOK,) if commands_only else HOOKS
    for plugin in plugins:
        _guarded(plugin, _import)
        _guarded(plugin, partial(_register, hooks=hooks))
    _refuse_clashes(plugins)
    return Plugins(plugins)


def _discover() -> list[_Plugin]:
    names: dict[int, tuple[str, str]] = {}  # parsing a distribution's metadata is slow, so once each

    def origin(entry: EntryPoint) -> tuple[str, str]:
        if entry.dist is None:
            return "unknown", ""
        if id(entry.dist) not in names:
            names[id(entry.dist)] = (entry.dist.metadata["Name"], entry.dist.version)
        return names[id(entry.dist)]

    found = [
        _Plugin(PluginRecord(entry.name, entry.value, *origin(entry), (), "loaded"), entry)
        for entry in entry_points(group=ENTRY_POINT_GROUP)
    ]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.record.distribution))


def _refuse_duplicate_names(plugins: list[_Plugin]) -> None:
    counts = Counter(plugin.name for plugin in plugins)
    for name in sorted(name for name, count in counts.items() if count > 1):
        offers = [plugin for plugin in plugins if plugin.name == name]
        where = " and ".join(f"{each.record.distribution} {each.record.version}".strip() for each in offers)
        for plugin in offers:
            if plugin.loaded():
                plugin.fail(f"the name is offered by {where}; uninstall one of them")


def _guarded(plugin: _Plugin, step: Callable[[_Plugin], None]) -> None:
    """Run a step of a plugin's loading; whatever the plugin's code raises becomes the reason that it failed."""
    if not plugin.loaded():
        return
    try:
        step(plugin)
    except PluginError as error:
        plugin.fail(str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code may raise anything, sys.exit included
        plugin.fail(_reason(error), error)


def _import(plugin: _Plugin) -> None:
    if _PLUGIN_NAME.fullmatch(plugin.name) is None:
        raise PluginError("a plugin's name has lower-case letters, digits and _ only, because it is also a config key")
    module = plugin.entry.load()
    # A manager of its own for each plugin: a refused one leaves nothing behind, and a registration's owner is known.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    implemented = _implemented(manager, module)
    try:
        manager.register(module, plugin.name)
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split())) from error
    for caller in manager.get_hookcallers(module) or ():
        for implementation in caller.get_hookimpls():
            if "register" not in implementation.argnames:
                raise PluginError(f"hook {caller.name} must take the argument 'register'; it takes none")
    plugin.hooks = manager
    plugin.record = msgspec.structs.replace(plugin.record, hooks=implemented)


def _implemented(manager: pluggy.PluginManager, module: object) -> tuple[str, ...]:
    """Return the hooks that a module implements, in the order of :data:`HOOKS`; refuse those that do not exist."""
    implemented = set()
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is None:
            if name in HOOKS:
                raise PluginError(f"hook {name} is not marked; put @hookimpl of runtime.spi above it")
            continue
        hook = options.get("specname") or name
        if hook not in HOOKS:
            nearest = difflib.get_close_matches(hook, HOOKS, n=1, cutoff=0.0)[0]
            raise PluginError(f"hook {hook} does not exist; the nearest is {nearest}")
        implemented.add(hook)
    if not implemented:
        raise PluginError("it implements no hook; a hook is a function marked with @hookimpl of runtime.spi")
    return tuple(hook for hook in HOOKS if hook in implemented)


def _register(plugin: _Plugin, hooks: Collection[str]) -> None:
    assert plugin.hooks is not None, "only an imported plugin registers"  # noqa: S101 - states the order above
    calls = plugin.hooks.hook
    for role in ROLES:
        if f"register_{role}" in hooks:
            getattr(calls, f"register_{role}")(register=_provider_registrar(plugin, role))
    if SETTINGS_HOOK in hooks:
        calls.register_settings(register=lambda model: _register_settings(plugin, model))
    if COMMANDS_HOOK in hooks:
        calls.register_commands(register=lambda command: _register_command(plugin, command))


def _provider_registrar(plugin: _Plugin, role: Role) -> Callable[[str, Factory[Any]], None]:
    def register(name: str, factory: Factory[Any]) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise PluginError(f"hook register_{role}: {name!r} is not a name; use lower-case letters, digits, - _ .")
        if not callable(factory):
            raise PluginError(f"hook register_{role}: the factory of {name!r} is {factory!r}, which cannot be called")
        if (role, name) in plugin.providers:
            raise PluginError(f"hook register_{role}: {name!r} is registered twice")
        plugin.providers[role, name] = factory

    return register


def _register_settings(plugin: _Plugin, model: type[BaseModel]) -> None:
    from pydantic import BaseModel  # slow, and a plugin that gets here has imported it already

    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(f"hook register_settings: {model!r} is not a pydantic model class")
    if plugin.settings is not None:
        raise PluginError("hook register_settings: two models are registered; a plugin has one section")
    if "enabled" in model.model_fields:
        raise PluginError("hook register_settings: the key 'enabled' is the runtime's own; name the field otherwise")
    plugin.settings = model


def _register_command(plugin: _Plugin, command: Command) -> None:
    if not isinstance(command, Command) or _NAME.fullmatch(command.name) is None or not callable(command.function):
        raise PluginError(f"hook register_commands: {command!r} is not a Command with a lower-case name and a function")
    if command.name in plugin.commands:
        raise PluginError(f"hook register_commands: {command.name!r} is registered twice")
    plugin.commands[command.name] = command


def _refuse_clashes(plugins: list[_Plugin]) -> None:
    owners: dict[tuple[str, str], list[_Plugin]] = {}
    for plugin in plugins:
        if plugin.loaded():
            for key in (*plugin.providers, *(("command", name) for name in plugin.commands)):
                owners.setdefault(key, []).append(plugin)
    for (role, name), claimants in owners.items():
        if len(claimants) > 1:
            who = " and ".join(f"{each.name} ({each.record.distribution})" for each in claimants)
            for plugin in claimants:
                if plugin.loaded():
                    plugin.fail(
                        f"the {role} {name!r} is registered by plugins {who}; "
                        f"disable one of them: plugins.{claimants[-1].name}.enabled = false"
                    )


def _reason(error: BaseException) -> str:
    """One line about an exception, with the place in the plugin's code that raised it."""
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename and "pluggy" not in frame.filename
    ]
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else reason
