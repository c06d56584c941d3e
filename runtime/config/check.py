"""Fits the values of a layer to the sections they are for, and says in one line what does not fit.

Sections are strict, and TOML knows fewer types than Python does: an array must become the tuple or list that the
field asks for, a string the path. pydantic's strict JSON mode has just these rules, so each value is validated in it
against the annotation of its field, before the layers are merged; a problem is then known with the source it came
from.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from runtime.config.sources import PREFIX, SEPARATOR, KeyPath, Layer, Text, Tree

NONE_WORD = "none"
"""How a file, a variable or ``--set`` unsets an optional key: TOML has no null."""


def fit(layer: Layer, model: type[BaseModel], problems: list[str], known: tuple[str, ...]) -> Tree:
    """Return the layer's values as the fields of ``model`` want them; append a line to ``problems`` for each misfit.

    ``known`` are the paths of all keys there are, to find the nearest one to an unknown.
    """
    return _Fit(layer, problems, known).section((), layer.values, model)


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a section's fields by the key that the configuration calls them."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def leaves(model: type[BaseModel], path: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Yield every key below a section that holds a value and not another section."""
    for key, info in keys(model).items():
        section = section_of(info)
        if section is None:
            yield (*path, key), info
        else:
            yield from leaves(section, (*path, key))


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def is_secret(info: FieldInfo) -> bool:
    """Whether the value of a field must never be shown."""
    return any(part is SecretStr for part in _parts(info.annotation))


def nearest(path: KeyPath, known: tuple[str, ...]) -> str:
    """Return the known key that is most like an unknown one, or an empty string."""
    text = ".".join(path)
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    # The right key in the wrong section, or without one.
    last = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(path[-1], last, n=1, cutoff=0.7)
    return last[close[0]] if close else next(iter(difflib.get_close_matches(text, known, n=1, cutoff=0.4)), "")


def near_variables(names: list[str], known: tuple[str, ...]) -> Iterator[str]:
    """Yield a problem for each variable that is a key but for its separator, such as ``RUNTIME_HTTP_PORT``."""
    by_variable = {PREFIX + path.replace(".", "_").upper(): path for path in known}
    for name in names:
        if name in by_variable:
            wanted = PREFIX + by_variable[name].replace(".", SEPARATOR).upper()
            if name != wanted:
                yield f"{name}: no key is read from this variable; {by_variable[name]} is {wanted}"


def lines_of(error: ValidationError, *, leaf: bool = False, shown: bool = True) -> Iterator[tuple[KeyPath, str]]:
    """Yield, for each place that a validation error complains of, its path and what is wrong there.

    The members of a union complain each on its own; their wishes are joined. Of a ``leaf``, only the indices of
    its items are a path. What was found is told if it may be ``shown``.
    """
    wishes: dict[KeyPath, list[str]] = {}
    found: dict[KeyPath, str] = {}
    for each in error.errors(include_url=False, include_context=False):
        path = tuple(str(part) for part in each["loc"] if isinstance(part, int) or not leaf)
        wish = each["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
        if each["type"] == "missing":
            wish = "it must be set"
        elif shown and each["type"] != "value_error":
            found.setdefault(path, literal(each["input"]))
        wishes.setdefault(path, [])
        if wish not in wishes[path]:
            wishes[path].append(wish)
    for path, each_wish in wishes.items():
        yield path, (f"is {found[path]}; " if path in found else "") + ", or ".join(each_wish)


def literal(value: Any) -> str:
    """Write a value as the user would have, cut short."""
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


class _Fit:
    def __init__(self, layer: Layer, problems: list[str], known: tuple[str, ...]) -> None:
        self.layer = layer
        self.problems = problems
        self.known = known

    def section(self, path: KeyPath, values: Tree, model: type[BaseModel]) -> Tree:
        fields = keys(model)
        fitted: Tree = {}
        for key, value in values.items():
            here = (*path, key)
            info = fields.get(key)
            if info is None:
                if model.model_config.get("extra") == "allow":
                    fitted[key] = _plain(value)
                else:
                    self.unknown(here, value)
                continue
            section = section_of(info)
            if section is None:
                self.leaf(here, value, info, fitted)
            elif isinstance(value, dict):
                fitted[key] = self.section(here, value, section)
            else:
                self.problem(here, f"is {literal(value)}; it is a section, so write [{'.'.join(here)}]")
        return fitted

    def leaf(self, path: KeyPath, value: Any, info: FieldInfo, fitted: Tree) -> None:
        annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        error: ValidationError | None = None
        for candidate in self.candidates(value, info):
            try:
                fitted[path[-1]] = adapter.validate_json(json.dumps(candidate, default=str), strict=True)
            except ValidationError as refused:
                error = error or refused
            else:
                return
        if isinstance(value, Text):
            try:  # the words that shells and compose files write for booleans: 1, yes, on
                fitted[path[-1]] = adapter.validate_strings(str(value), strict=False)
            except ValidationError:
                pass  # `error` has the reason already
            else:
                return
        assert error is not None, "there is at least one candidate"  # noqa: S101 - states the loop's invariant
        for inner, text in lines_of(error, leaf=True, shown=not is_secret(info)):
            indices = "".join(f"[{part}]" for part in inner)
            self.problem(path, text, indices)

    def candidates(self, value: Any, info: FieldInfo) -> Iterator[Any]:
        """Yield what a value may mean, the likeliest first."""
        parts = _parts(info.annotation)
        if str(value).lower() == NONE_WORD and type(None) in parts and SecretStr not in parts:
            yield None
            return
        for each in self.readings(value, parts) if isinstance(value, Text) else [value]:
            plain = _plain(each)
            yield self.rebased(plain) if Path in parts else plain

    def readings(self, value: Text, parts: list[Any]) -> list[Any]:
        """Return what a text may mean. For a key that wants text it is text, whatever else it looks like.

        Only quotes around it are TOML's: ``--set node.name='"a"'``.
        """
        parsed = value.parsed()
        is_text = (str in parts or SecretStr in parts) and not any(part in parts for part in (bool, int, float))
        if is_text and not isinstance(parsed, str | list | dict):
            return [str(value), parsed]
        return [parsed, str(value)]

    def rebased(self, value: Any) -> Any:
        """Make a path, or each of a list, absolute: a file's relative paths start from its folder."""
        if isinstance(value, str) and value:
            return str(self.layer.base / Path(value).expanduser())
        return [self.rebased(each) for each in value] if isinstance(value, list) else value

    def unknown(self, path: KeyPath, value: Any) -> None:
        if isinstance(value, dict) and value and path[0] != "plugins":
            for key, inner in value.items():
                self.unknown((*path, key), inner)
            return
        if len(path) == 2 and path[0] == "plugins":
            installed = sorted({each.split(".")[1] for each in self.known if each.startswith("plugins.")})
            close = next(iter(difflib.get_close_matches(path[1], installed, n=1, cutoff=0.5)), "")
            offer = f"the nearest is plugins.{close}" if close else f"there are {', '.join(installed) or 'none'}"
            self.problem(path, f"is not the section of an installed plugin; {offer}")
            return
        close = nearest(path, self.known)
        self.problem(path, "is not a key" + (f"; the nearest is {close}" if close else ""))

    def problem(self, path: KeyPath, text: str, indices: str = "") -> None:
        gap = " " if text.startswith("is ") else ": "
        self.problems.append(f"{self.layer.origin(path)}: {'.'.join(path)}{indices}{gap}{text}")


def _plain(value: Any) -> Any:
    """Read the texts inside a value."""
    match value:
        case Text():
            return value.parsed()
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case _:
            return value


def _parts(annotation: Any) -> list[Any]:
    """Return an annotation and everything inside it."""
    return [annotation, *(part for each in get_args(annotation) for part in _parts(each))]
