"""Strict request bodies: JSON into a pydantic model, or one sentence that says what is wrong.

Frontends read bodies through this rather than through FastAPI's parameters, because clients of the APIs that they
speak leave the ``Content-Type`` out (``curl -d`` sends a form's), and because a refusal should name the field and the
nearest right one. Imported by a frontend's routes, not by ``runtime.spi`` itself: pydantic is slow to import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import InvalidRequest

MODEL_NAME_CHARACTERS = 512
"""The longest name of a model that a frontend should take: errors and logs repeat it."""
MOST_ENTRIES = 4096
"""The most entries that a frontend should take in a list: messages, prompts."""
_MOST_ERRORS = 256
"""Describing one takes pydantic about a kilobyte, and a body has room for a million."""
_SHOWN_CHARACTERS = 60
_NAMED_CHARACTERS = 200
"""How much of a name that a client made up is repeated, or compared with the right ones."""


class StrictBody(BaseModel):
    """Base of request bodies: no coercion, no unknown fields, no NaN, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


BodyT = TypeVar("BodyT", bound=BaseModel)


def read_body(model: type[BodyT], body: bytes) -> BodyT:
    """Parse and check a request body.

    Raises:
        InvalidRequest: the body is not JSON or not what ``model`` describes; ``param`` is the path of the field.
    """
    if not body.strip():
        raise InvalidRequest("the request has no body; send a JSON object")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MOST_ERRORS:
            raise InvalidRequest(
                f"the request body has {error.error_count():,} unknown or wrong fields; send those of this API"
            ) from None
        # Inputs are JSON values; the URL of pydantic's documentation is no help to an API's client.
        raise explain(error.errors(include_url=False), model) from None


def explain(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None = None) -> InvalidRequest:
    """Put pydantic's list of errors into one sentence about the first of them.

    ``model``, where it is known, supplies the names that a misspelt field is compared with.
    """
    first = errors[0]
    location: tuple[str | int, ...] = tuple(first["loc"])
    path = _cut(dotted(location), _NAMED_CHARACTERS)
    match first["type"]:
        case "json_invalid":
            reason = first.get("ctx", {}).get("error", first["msg"])
            return InvalidRequest(f"the request body is not JSON: {reason}")
        case "model_type" | "model_attributes_type" if not location:
            return InvalidRequest(f"the request body must be a JSON object, and is {_shown(first['input'])}")
        case "extra_forbidden":
            near = (
                get_close_matches(str(location[-1])[:_NAMED_CHARACTERS], _fields(model, location[:-1]), n=1)
                if model
                else []
            )
            hint = f'; did you mean "{dotted((*location[:-1], near[0]))}"?' if near else ""
            return InvalidRequest(f'unknown field "{path}"{hint}', param=path)
        case "missing":
            return InvalidRequest(f'the field "{path}" is required', param=path)
        case "string_too_short" if not first["input"]:
            return InvalidRequest(f'"{path}" is empty', param=path)
        case "too_short":
            wanted, found = first["ctx"]["min_length"], first["ctx"]["actual_length"]
            return InvalidRequest(f'"{path}" needs at least {wanted} entry, and has {found}', param=path)
        case "too_long":
            return InvalidRequest(f'"{path}" has more than {first["ctx"]["max_length"]} entries', param=path)
        case "value_error":
            why = _cut(str(first["ctx"]["error"]), 2 * _NAMED_CHARACTERS)
            return InvalidRequest(f'"{path}" {why}', param=path)
        case _:
            wanted = str(first["msg"]).removeprefix("Input ")
            return InvalidRequest(f'"{path}" {wanted}, and is {_shown(first["input"])}', param=path)


def dotted(location: Sequence[str | int]) -> str:
    """Write a field's location the way people do: ``messages[0].role``."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _shown(value: Any) -> str:
    if isinstance(value, str):
        # Escaped, a character is up to six; what is cut off need not be written first.
        value = value[: _SHOWN_CHARACTERS + 1]
    elif isinstance(value, list):
        value = value[:_SHOWN_CHARACTERS]
    return _cut(json.dumps(value, ensure_ascii=False, default=repr), _SHOWN_CHARACTERS)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}…"


def _fields(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the model that ``location`` leads to, seen from ``model``."""
    for step in location:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step)
        nested = next(_models(field.annotation), None) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
