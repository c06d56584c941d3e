"""Where configuration comes from: TOML files, environment variables and ``--set``, read into layers.

A layer is one source with its values as a tree. What its values must be is not decided here, and nothing here is
slow to import, because the command line asks which plugins are disabled before anything else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError

PREFIX = "RUNTIME_"
SEPARATOR = "__"
CLIENT_VARIABLES = frozenset({"RUNTIME_URL", "RUNTIME_API_KEY"})
"""Read by the verbs that talk to a node; they are not configuration."""

Tree = dict[str, Any]
KeyPath = tuple[str, ...]


class Text(str):
    """A value of the environment or of ``--set``: what it means depends on the key that it is for."""

    __slots__ = ()

    def parsed(self) -> Any:
        """Read it as a TOML value; a bare word is a string."""
        try:
            return tomllib.loads(f"value = {self}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            return str(self)


@dataclass(frozen=True)
class Layer:
    """One source of configuration."""

    values: Tree
    base: Path
    """Folder that relative paths of this layer start from."""
    label: str
    """Where a value comes from, unless :attr:`labels` knows better."""
    labels: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Say where the value at ``path`` comes from: a file, a variable's name, or ``--set``."""
        while path:
            if path in self.labels:
                return self.labels[path]
            path = path[:-1]
        return self.label


def read_layers(files: Sequence[Path], overrides: Sequence[str], environ: Mapping[str, str]) -> list[Layer]:
    """Read every source, the lowest first: files in their order, the environment, ``--set``.

    Raises:
        ConfigError: a file cannot be read or is not TOML, or an override is not of the form ``a.b=c``.
    """
    layers: list[Layer] = []
    problems: list[str] = []
    reads: list[Callable[[], Layer]] = [partial(read_file, file) for file in files]
    reads += [partial(read_environment, environ), partial(read_overrides, overrides)]
    for read in reads:
        try:
            layers.append(read())
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return layers


def read_file(file: Path) -> Layer:
    """Read a TOML file.

    Raises:
        ConfigError: it is missing, unreadable or not TOML; the message has the line and column.
    """
    try:
        values = tomllib.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; give --config the path of a TOML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: this is a folder; give --config the path of a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{file}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{file}: not TOML: it is not UTF-8 text (at line {line}, column {column})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    return Layer(values, file.absolute().parent, str(file))


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Read the variables of the form ``RUNTIME_SECTION__KEY``; others are not ours.

    Raises:
        ConfigError: two variables contradict each other.
    """
    layer = Layer({}, Path.cwd(), "environment")
    for name in sorted(environ):
        if name.startswith(PREFIX) and SEPARATOR in name and name not in CLIENT_VARIABLES:
            path = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
            _put(layer, path, Text(environ[name]), name)
    return layer


def read_overrides(overrides: Sequence[str]) -> Layer:
    """Read ``a.b=c`` items; the value is in TOML's syntax, and a bare word is a string.

    Raises:
        ConfigError: an item is not of that form.
    """
    layer = Layer({}, Path.cwd(), "--set")
    for item in overrides:
        key, equals, value = item.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise ConfigError(f"--set: {item!r} is not of the form section.key=value, such as http.port=11500")
        _put(layer, path, Text(value.strip()), "--set")
    return layer


def _put(layer: Layer, path: KeyPath, text: Text, label: str) -> None:
    parsed = text.parsed()
    node = layer.values
    for depth, part in enumerate(path[:-1], start=1):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            other = layer.origin(path[:depth])
            raise ConfigError(f"{label}: {'.'.join(path)} contradicts {other}, which sets {'.'.join(path[:depth])}")
        node = child
    last = path[-1]
    existing = node.get(last)
    if isinstance(parsed, dict) and isinstance(existing, dict):
        existing.update(parsed)
    elif isinstance(existing, dict):
        raise ConfigError(f"{label}: {'.'.join(path)} is a section; set its keys one by one")
    else:
        node[last] = parsed if isinstance(parsed, dict) else text
    layer.labels[path] = label


_FALSE_WORDS = frozenset({"false", "0", "no", "off", "n", "f"})


def disabled_plugins(layers: Sequence[Layer]) -> frozenset[str]:
    """Return the plugins that ``plugins.<name>.enabled = false`` turns off; the last layer to say so counts.

    This is the first of two phases: the rest of the configuration can be checked only once the plugins have said
    what their sections hold. A value that is no boolean disables nothing, and is refused in the second phase.
    """
    switches: dict[str, bool] = {}
    for layer in layers:
        for name, section in _tables(layer.values.get("plugins")):
            enabled = section.get("enabled")
            if isinstance(enabled, bool):
                switches[name] = enabled
            elif isinstance(enabled, Text):
                switches[name] = enabled.lower() not in _FALSE_WORDS
    return frozenset(name for name, enabled in switches.items() if not enabled)


def _tables(tree: Any) -> Iterator[tuple[str, Tree]]:
    if isinstance(tree, dict):
        yield from ((name, section) for name, section in tree.items() if isinstance(section, dict))
