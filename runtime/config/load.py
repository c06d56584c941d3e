"""The configuration of a node: what its sections hold, and how it is loaded.

Loading has two phases. The first reads only which plugins are disabled; then the others are loaded, and the second
checks everything, the plugins' own sections included. From the lowest to the highest: the defaults, each file in its
order, the environment (``RUNTIME_HTTP__PORT``), and ``--set``.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.config.check import fit, is_secret, keys, leaves, lines_of, near_variables
from runtime.config.sections import (
    SHORTEST_KEY,
    Address,
    ClusterSection,
    HttpSection,
    LogSection,
    MemorySection,
    ModelsSection,
    NodeSection,
    PluginSection,
    PluginsSection,
    RolesSection,
    UncheckedSection,
    is_loopback,
)
from runtime.config.sources import KeyPath, Layer, Tree, disabled_plugins, read_layers
from runtime.errors import ConfigError, PluginError
from runtime.spi.loader import Plugins, load_plugins

__all__ = [
    "Address",
    "ClusterSection",
    "Config",
    "ConfigRow",
    "HttpSection",
    "LogSection",
    "MemorySection",
    "ModelsSection",
    "NodeSection",
    "RolesSection",
    "is_loopback",
    "load_settings",
]

DEFAULT_ORIGIN = "default"
MASK = "********"
_log = logging.getLogger(__name__)


class ConfigRow(NamedTuple):
    """One key of the effective configuration. A secret's value is masked."""

    key: str
    value: Any
    origin: str


class Config(BaseSettings):
    """The effective configuration. Made by :func:`load_settings`."""

    model_config = SettingsConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    node: NodeSection = Field(default_factory=NodeSection)
    http: HttpSection = Field(default_factory=HttpSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    models: ModelsSection = Field(default_factory=ModelsSection)
    memory: MemorySection = Field(default_factory=MemorySection)
    log: LogSection = Field(default_factory=LogSection)
    roles: RolesSection = Field(default_factory=RolesSection)
    plugins: PluginsSection = Field(default_factory=PluginsSection)

    _origins: dict[KeyPath, str] = PrivateAttr(default_factory=dict)
    _settings: dict[str, BaseModel] = PrivateAttr(default_factory=dict)

    @property
    def plugin_settings(self) -> Mapping[str, BaseModel]:
        """Settings of each loaded plugin that registered a model, by the plugin's name."""
        return self._settings

    def origin(self, key: str) -> str:
        """Say where the value of a key such as ``http.port`` comes from."""
        return self._origins.get(tuple(key.split(".")), DEFAULT_ORIGIN)

    def secrets(self) -> list[str]:
        """Return the texts of all secrets, for the log to mask."""
        return list(_secrets(self))

    def rows(self) -> list[ConfigRow]:
        """Return every key with its value and origin."""
        return list(_rows(self, (), self._origins))


def _rows(section: BaseModel, path: KeyPath, origins: Mapping[KeyPath, str]) -> Iterator[ConfigRow]:
    values: dict[str, tuple[Any, FieldInfo | None]] = {
        info.alias or name: (getattr(section, name), info) for name, info in type(section).model_fields.items()
    }
    # Nobody can say which of these are secrets, so all of them are.
    values |= {name: (_masked(value), None) for name, value in (section.model_extra or {}).items()}
    for key, (value, info) in values.items():
        here = (*path, key)
        if isinstance(value, BaseModel) and (info is None or not is_secret(info)):
            yield from _rows(value, here, origins)
            continue
        if value is not None and info is not None and is_secret(info):
            value = MASK
        yield ConfigRow(".".join(here), _plain(value), origins.get(here, DEFAULT_ORIGIN))


def _masked(value: Any) -> Any:
    """Hide every value in a tree whose keys mean nothing to us, and leave its shape."""
    return {key: _masked(each) for key, each in value.items()} if isinstance(value, dict) else MASK


def _secrets(value: Any) -> Iterator[str]:
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case BaseModel():
            for name, each in value:
                if name not in (value.model_extra or {}):
                    yield from _secrets(each)
            yield from (text for text in _texts(value.model_extra) if len(text) >= SHORTEST_KEY)
        case dict():
            for each in value.values():
                yield from _secrets(each)
        case list() | tuple() | set() | frozenset():
            for each in value:
                yield from _secrets(each)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case tuple() | list() | set() | frozenset():
            return [_plain(each) for each in value]
        case bool() | int() | float() | str() | dict() | None:
            return value
        case _:
            return str(value)


class _FittedLayer(PydanticBaseSettingsSource):
    """A layer whose values have the types of their fields already."""

    def __init__(self, settings: type[BaseSettings], values: Tree) -> None:
        super().__init__(settings)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def load_settings(
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    plugins: Plugins | Callable[[Collection[str]], Plugins] = load_plugins,
) -> Config:
    """Load the configuration, and the plugins that it does not disable.

    Args:
        files: TOML files, the later over the earlier.
        overrides: items ``a.b=c``; the value is in TOML's syntax, and a bare word is a string.
        environ: variables; those of the form ``RUNTIME_A__B`` count.
        plugins: the loaded plugins, or how to load them given the names of the disabled ones.

    Raises:
        ConfigError: with one line for each problem: where it is, the key, what was found and what is wanted.
    """
    layers = read_layers(files, overrides, environ)
    loaded = plugins if isinstance(plugins, Plugins) else plugins(disabled_plugins(layers))
    sections = _plugin_sections(loaded, layers)
    shape = create_model("Plugins", __base__=PluginsSection, **_with_defaults(sections))
    model = create_model("Config", __base__=Config, plugins=(shape, Field(default_factory=shape)))
    known = tuple(".".join(path) for path, _ in leaves(model))

    problems = list(near_variables(list(environ), known))
    fitted = [fit(layer, model, problems, known) for layer in layers]
    _refuse(problems)
    config = _merge(model, layers, fitted)
    config._origins = {path: layer.origin(path) for layer in layers for path in _paths(layer.values)}
    config = _read_key_files(config)
    _refuse([*_contradictions(config), *_unusable_roles(config, loaded, sections)])
    config._settings = {
        name: getattr(config.plugins, name)
        for name in loaded.settings_models()
        if not isinstance(getattr(config.plugins, name), UncheckedSection)
    }
    return config


def _plugin_sections(plugins: Plugins, layers: Sequence[Layer]) -> dict[str, type[PluginSection]]:
    """Return the strict form of each plugin's section."""
    models = plugins.settings_models()
    mentioned = {name for layer in layers for name in _table(layer.values.get("plugins"))}
    sections: dict[str, type[PluginSection]] = {}
    for record in plugins.records:
        name = record.name
        model = models.get(name)
        if record.status != "loaded":
            sections[name] = UncheckedSection
        elif model is None:
            sections[name] = PluginSection
        elif name not in mentioned and any(info.is_required() for info in model.model_fields.values()):
            # Its keys must be set only by who uses it; _unusable_roles asks for them then.
            sections[name] = UncheckedSection
        else:
            # The plugin's model is the first base, so that the strictness of the second one prevails.
            bases: Any = (model, PluginSection)
            sections[name] = create_model(f"{name.title()}Section", __base__=bases)
    return sections


def _with_defaults(sections: Mapping[str, type[PluginSection]]) -> dict[str, Any]:
    return {name: (section, Field(default_factory=section)) for name, section in sections.items()}


def _table(value: Any) -> Tree:
    return value if isinstance(value, dict) else {}


def _merge(model: type[Config], layers: Sequence[Layer], fitted: Sequence[Tree]) -> Config:
    class Layered(model):  # type: ignore[misc, valid-type]  # its fields are known only once the plugins are loaded
        @classmethod
        def settings_customise_sources(cls, settings_cls: type[BaseSettings], **_: Any) -> tuple[_FittedLayer, ...]:
            return tuple(_FittedLayer(settings_cls, values) for values in reversed(fitted))

    try:
        config: Config = Layered()
    except ValidationError as error:
        lines = []
        for path, text in lines_of(error, shown=False):
            lines.append(f"{_blamed(layers, path)}: {'.'.join(path)}: {text}")
        raise ConfigError("\n".join(lines)) from None
    return config


def _blamed(layers: Sequence[Layer], path: KeyPath) -> str:
    """Return the origin of a value, or of the innermost section around it that any layer has."""
    while path:
        origins = [layer.origin(path) for layer in layers if _holds(layer.values, path)]
        if origins:
            return origins[-1]
        path = path[:-1]
    return DEFAULT_ORIGIN


def _holds(tree: Tree, path: KeyPath) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _paths(tree: Tree, path: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _paths(value, (*path, key))


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _read_key_files(config: Config) -> Config:
    problems: list[str] = []
    http = _with_key(config, config.http, "http", "api_key", problems)
    cluster = _with_key(config, config.cluster, "cluster", "key", problems)
    _refuse(problems)
    return config.model_copy(update={"http": http, "cluster": cluster})


def _with_key(config: Config, section: BaseModel, name: str, key: str, problems: list[str]) -> BaseModel:
    """Return the section with the key that its file holds."""
    file: Path | None = getattr(section, f"{key}_file")
    if file is None:
        return section
    path, where = f"{name}.{key}_file", config.origin(f"{name}.{key}_file")
    if getattr(section, key) is not None:
        problems.append(f"{where}: {path} and {name}.{key} are both set; keep one of them")
        return section
    try:
        text = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        problems.append(f"{where}: {path} is {file}, which cannot be read: {why}")
        return section
    if not text:
        problems.append(f"{where}: {path} is {file}, which is empty; write the key into it")
        return section
    if len(text) < SHORTEST_KEY:
        problems.append(f"{where}: {path} is {file}, which holds {len(text)} characters; use {SHORTEST_KEY} or more")
        return section
    if mode & stat.S_IROTH:
        _log.warning("every user of this machine can read the key in %s; chmod 600 it", file)
    config._origins[name, key] = str(file)
    return section.model_copy(update={key: SecretStr(text)})


def _contradictions(config: Config) -> Iterator[str]:
    http, cluster = config.http, config.cluster
    if not is_loopback(http.host) and http.api_key is None:
        yield (
            f"{config.origin('http.host')}: http.host is {http.host}, which other machines can reach; set http.api_key "
            "or http.api_key_file, or keep to 127.0.0.1"
        )
    listen = cluster.listen_address
    if listen is not None and not listen.is_loopback and cluster.key is None:
        yield (
            f"{config.origin('cluster.listen')}: cluster.listen is {listen}, which other machines can reach; set "
            "cluster.key_file or cluster.key to a secret that all nodes share"
        )
    if cluster.advertise is not None and listen is None:
        yield (
            f"{config.origin('cluster.advertise')}: cluster.advertise is {cluster.advertise}, but cluster.listen is "
            "not set, so no peer could connect"
        )
    if (cluster.tls_cert is None) != (cluster.tls_key is None):
        there, missing = ("tls_key", "tls_cert") if cluster.tls_cert is None else ("tls_cert", "tls_key")
        yield f"{config.origin(f'cluster.{there}')}: cluster.{there} is set; set cluster.{missing} too"
    for key in ("tls_ca", "tls_mutual"):
        if getattr(cluster, key) and cluster.tls_cert is None and cluster.tls_key is None:
            yield (
                f"{config.origin(f'cluster.{key}')}: cluster.{key} is set, but nodes speak TLS only with "
                "cluster.tls_cert and cluster.tls_key"
            )
    if cluster.tls_mutual and cluster.tls_ca is None:
        yield (
            f"{config.origin('cluster.tls_mutual')}: cluster.tls_mutual is set; set cluster.tls_ca to the authorities "
            "that certificates of peers are checked against"
        )
    if cluster.acceptable_pause < cluster.heartbeat:
        yield (
            f"{config.origin('cluster.acceptable_pause')}: cluster.acceptable_pause is {cluster.acceptable_pause:g}, "
            f"less than the {cluster.heartbeat:g} s between two signs of life (cluster.heartbeat)"
        )
    if cluster.longest_silence <= cluster.acceptable_pause:
        yield (
            f"{config.origin('cluster.longest_silence')}: cluster.longest_silence is {cluster.longest_silence:g}, so "
            f"that the acceptable pause of {cluster.acceptable_pause:g} s (cluster.acceptable_pause) is never granted"
        )


def _unusable_roles(config: Config, plugins: Plugins, sections: Mapping[str, type[PluginSection]]) -> Iterator[str]:
    models = plugins.settings_models()
    for key, role, name in config.roles.selected():
        where = f"{config.origin(f'roles.{key}')}: roles.{key}"
        try:
            plugin = plugins.plugin_of(role, name)
        except PluginError as error:
            yield f"{where}: {error}"
            continue
        if plugin in models and sections[plugin] is UncheckedSection:
            wanted = [each for each, info in keys(models[plugin]).items() if info.is_required()]
            yield f"{where} selects {name!r}, which needs plugins.{plugin}.{', '.join(wanted)} to be set"
