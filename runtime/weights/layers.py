"""Which layer a tensor belongs to, told by its name."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d{1,6})\.")
_EXPERT = re.compile(r"\.(?:experts|moe\.mlp)\.(\d{1,6})\.")
_MARK = "@"
_TOWER = re.compile(r"(?:^|\.)(?:visual|vision(?:_\w+)?|audio(?:_\w+)?)\.")
_SPECULATIVE = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, or None if it stands outside the layers.

    Encoders of pictures and sound number layers of their own; their tensors stand outside, and the architecture's
    ``sanitize()`` drops them.
    """
    match = _LAYER.search(name)
    return None if match is None or _TOWER.search(name) else int(match.group(1))


def expert_of(name: str) -> int | None:
    """Return the number of the expert that a tensor belongs to, where experts are stored one by one."""
    match = _EXPERT.search(name)
    return None if match is None else int(match.group(1))


def is_speculative(name: str, total: int) -> bool:
    """Whether a tensor only predicts further tokens: it is called ``mtp``, or lies beyond the last of ``total`` layers.

    mlx-lm's architectures drop those that they know of, some by a fixed number.
    """
    layer = layer_of(name)
    return (layer is not None and layer >= total) or _SPECULATIVE.search(name) is not None


def renumbered(name: str, *, layer: int | None = None, expert: int | None = None) -> str:
    """Return a tensor's name with another layer, another expert, or both."""
    if layer is not None:
        name = _replaced(_LAYER, name, layer)
    if expert is not None:
        name = _replaced(_EXPERT, name, expert)
    return name


def set_apart(name: str) -> str:
    """Return the name of an expert's tensor in a form in which no architecture takes it for an expert's."""
    return _EXPERT.sub(lambda match: match[0].replace(f".{match[1]}.", f"{_MARK}{match[1]}."), name)


def put_back(name: str) -> str | None:
    """Undo :func:`set_apart`; None for other names."""
    return name.replace(_MARK, ".") if _MARK in name else None


def _replaced(pattern: re.Pattern[str], name: str, number: int) -> str:
    match = pattern.search(name)
    return name if match is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
