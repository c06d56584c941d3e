"""A tiny configuration of every text model in mlx-lm: a few layers, of every kind that the architecture has.

Each is what ``config.json`` would hold, under the architecture's own names, and can be written there.
"""

from __future__ import annotations

import copy
from typing import Any

from runtime.testing.tiny.dense import DENSE
from runtime.testing.tiny.experts import EXPERT
from runtime.testing.tiny.recurrent import RECURRENT

TINY_MODULES = tuple(sorted((*DENSE, *EXPERT, *RECURRENT)))
"""Names of mlx-lm's model modules, which are the ``model_type`` too except where several share a module."""

MODEL_TYPES = {"bailing_moe_v3": "bailing_hybrid"}
"""What ``model_type`` says where it is not the module's name."""


def tiny_config(module: str) -> dict[str, Any]:
    """Return a tiny ``config.json`` for the module ``mlx_lm.models.<module>``.

    Raises:
        KeyError: there is none for that module.
    """
    config = DENSE.get(module) or EXPERT.get(module) or RECURRENT[module]
    return {"model_type": MODEL_TYPES.get(module, module), **copy.deepcopy(config)}
