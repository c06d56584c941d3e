"""The architectures of the mlx-lm that is installed. It is not imported, except for :func:`model_types`."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import msgspec

from runtime.spi import ModelFamily

NO_MODELS = frozenset(
    {
        "activations",
        "base",
        "bitlinear_layers",
        "cache",
        "gated_delta",
        "mla",
        "pipeline",
        "rope_utils",
        "ssm",
        "switch_layers",
    }
)
"""Modules of ``mlx_lm.models`` in 0.32.2 that hold parts of models."""


class Support(msgspec.Struct, frozen=True):
    """What becomes of one module of ``mlx_lm.models``."""

    module: str
    family: str | None
    """The family that runs it; None if none does."""
    how: str
    """How it is run, or why not."""


def version() -> str:
    """Return the version of mlx-lm."""
    return importlib.metadata.version("mlx-lm")


@functools.cache
def modules() -> tuple[str, ...]:
    """Return the names of mlx-lm's model modules, sorted."""
    found = importlib.util.find_spec("mlx_lm")
    folders = [str(Path(folder) / "models") for folder in (found and found.submodule_search_locations) or ()]
    return tuple(sorted({module.name for module in pkgutil.iter_modules(folders)} - NO_MODELS))


def model_types() -> tuple[str, ...]:
    """Return every ``model_type`` that mlx-lm knows: its modules, and other names that it has for them."""
    from mlx_lm.utils import MODEL_REMAPPING

    return tuple(sorted({*modules(), *MODEL_REMAPPING}))


def support(families: Mapping[str, ModelFamily]) -> list[Support]:
    """Return for each installed module the first family that runs it, or why none does."""
    found = []
    for module in modules():
        takers = ((name, family.modules()[module]) for name, family in families.items() if module in family.modules())
        family, how = next(takers, (None, ""))
        if family is None:
            reasons = (each.refused_modules().get(module) for each in families.values())
            how = next((reason for reason in reasons if reason is not None), "no family that is configured runs it")
        found.append(Support(module, family, how))
    return found


def near(model_type: str, names: Iterable[str]) -> list[str]:
    """Return the names nearest to an unknown one."""
    return get_close_matches(model_type.lower(), sorted(names), n=3, cutoff=0.5)
