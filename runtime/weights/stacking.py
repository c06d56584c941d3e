"""Stacking experts that are stored one by one, so that no two copies of a stack are in memory at once.

As stored, an expert's matrix is called ``<block>.experts.<number>.<projection>.weight``. In the model all of a layer
are one array. An architecture's ``sanitize()`` makes it with one operation, which holds all experts twice until it
ends. Where that is all it does to them, they are rather copied one after the other into the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import mlx.core as mx

_EXPERT = re.compile(
    r"(?P<block>.+)\.(?:experts|mlp)\.(?P<number>\d+)\.(?P<projection>\w+)\.(?P<part>weight|scales|biases|bias)"
)
_PROJECTIONS = {
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "up_proj": ("up_proj", "fc1"),
    "down_proj": ("down_proj", "fc2"),
}
"""What a projection is called in models, where it has other names in checkpoints."""


def are_plain(names: Iterable[str]) -> bool:
    """Whether tensors of single experts are such as MLX's layers have, with no parts of a foreign packing."""
    return all(_EXPERT.fullmatch(name) for name in names)


def find_stacks(experts: Mapping[str, mx.array], parameters: Mapping[str, mx.array]) -> dict[str, list[mx.array]]:
    """Return for each parameter that is a plain stack of experts the arrays in it, by number.

    It is one if its name says so, and its shape and type are those of the arrays, as many as there are. Experts with
    parts of other names, such as the scales of a foreign packing, are left to ``sanitize()``.

    Args:
        experts: tensors of single experts, as stored.
        parameters: what is to be loaded, by the model's names, lazy and in the stored type.
    """
    groups: dict[tuple[str, str, str], dict[int, str]] = {}
    foreign = set()
    for name in experts:
        match = _EXPERT.fullmatch(name)
        if match is None:
            foreign.add(name.rpartition(".")[0])
        else:
            groups.setdefault((match["block"], match["projection"], match["part"]), {})[int(match["number"])] = name
    found = {}
    for (block, projection, part), numbered in groups.items():
        names = [numbered[number] for number in sorted(numbered)]
        if not foreign.isdisjoint(name.rpartition(".")[0] for name in names):
            continue
        arrays = [experts[name] for name in names]
        for candidate in _candidates(block, projection, part):
            if candidate in parameters and _is_stack(parameters[candidate], arrays):
                found[candidate] = arrays
    return found


def _candidates(block: str, projection: str, part: str) -> Iterable[str]:
    for owner in (block, re.sub(r"\bblock_sparse_moe$", "mlp", block)):  # Kimi's block has another name in the model
        for container in ("switch_mlp", "experts", "experts.switch_mlp"):
            for called in _PROJECTIONS.get(projection, (projection,)):
                yield f"{owner}.{container}.{called}.{part}"


def _is_stack(stack: mx.array, arrays: list[mx.array]) -> bool:
    return all(stack.shape == (len(arrays), *array.shape) and stack.dtype == array.dtype for array in arrays)


def filled(experts: list[mx.array], dtype: mx.Dtype) -> mx.array:
    """Return the experts as one array of ``dtype``, evaluated. The list is emptied, to free each once it is copied."""
    count = len(experts)
    stack = mx.zeros((count, *experts[0].shape), dtype=dtype)
    experts.reverse()
    for number in range(count):
        stack[number] = experts.pop().astype(dtype)
        mx.eval(stack)
    return stack
