"""Loading the tensors of one slice into a model, strictly, and evaluating them piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions
from runtime.weights.architecture import sanitized
from runtime.weights.expanding import expanded, expanded_bytes, is_packed
from runtime.weights.layers import expert_of, layer_of, put_back, set_apart
from runtime.weights.packing import in_mlx_form, make_quantized_layers
from runtime.weights.reading import absent_outside_layers, lazy_arrays, own, stand_ins
from runtime.weights.stacking import are_plain, filled, find_stacks

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
"""The types to compute in, by the names that :class:`~runtime.spi.LoadOptions` has for them."""


def load(
    model: nn.Module,
    checkpoint: Checkpoint,
    span: LayerSpan,
    options: LoadOptions,
    progress: Callable[[int, int], None],
) -> None:
    """Load what the model owns; see :class:`runtime.spi.ModelFamily`.

    Layers keep their numbers. ``sanitize()`` decides as it would for the whole model (:mod:`runtime.weights.reading`);
    of what it returns, exactly what ``model.parameters()`` names is taken.

    Args:
        model: mlx-lm's, without what other stages own.
        checkpoint: where from.
        span: the slice.
        options: the type to compute in, and whether packed weights are expanded.
        progress: called with the bytes evaluated so far and the bytes in all.

    Raises:
        CheckpointCorrupt: a tensor is missing, left over, of the wrong shape, or cannot be read.
    """
    stored = lazy_arrays(own(checkpoint, span))
    elsewhere = absent_outside_layers(checkpoint)
    experts = _single_experts(stored, checkpoint)
    weights = _owned(
        model,
        sanitized(checkpoint.config, {**stand_ins(checkpoint.tensors, span), **elsewhere, **stored}),
        span,
        checkpoint,
    )
    _refuse_absent(
        (name for name, array in weights.items() if any(array is other for other in elsewhere.values())), checkpoint
    )
    del stored
    weights = in_mlx_form(weights, checkpoint)
    make_quantized_layers(model, weights, checkpoint)
    _check_names(model, weights, span, checkpoint)
    stacks = find_stacks(experts, weights)
    del experts
    weights = dict(_in_dtype(model, weights, DTYPES[options.dtype]))
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        raise CheckpointCorrupt(f"{checkpoint.path} does not fit its own config.json: {error}") from error
    weights.clear()
    model.eval()
    try:
        _evaluate(model, stacks, progress, DTYPES[options.dtype] if options.dequantize else None)
    except (RuntimeError, ValueError) as error:  # MLX's own, of reading and of shapes that do not fit
        raise CheckpointCorrupt(f"reading the weights in {checkpoint.path} failed: {error}") from error
    if elsewhere:
        _refuse_absent(_with_nan(model), checkpoint)


def _single_experts(stored: dict[str, mx.array], checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return the tensors of experts that are stored one by one, unpacked if ``sanitize()`` unpacks them.

    It unpacks tensors of any name, and stacks those that are called experts. Under other names it does the first alone.
    """
    experts = {name: array for name, array in stored.items() if expert_of(name) is not None}
    if are_plain(experts):
        return experts
    others = {set_apart(name): array for name, array in experts.items()}
    unpacked = sanitized(checkpoint.config, {**stand_ins(checkpoint.tensors, None), **others})
    return {name: array for apart, array in unpacked.items() if (name := put_back(apart)) is not None}


def _owned(
    model: nn.Module, weights: dict[str, mx.array], span: LayerSpan, checkpoint: Checkpoint
) -> dict[str, mx.array]:
    """Return the tensors of modules that the model has, whatever parts their packing gives them."""
    modules = {name.rpartition(".")[0] for name, _ in tree_flatten(model.parameters())}
    owned = {name: array for name, array in weights.items() if name.rpartition(".")[0] in modules}
    whole = span.is_first and span.is_last
    _refuse_surplus(
        (name for name in weights.keys() - owned if whole or ((layer := layer_of(name)) is not None and layer in span)),
        checkpoint,
    )
    return owned


def _refuse_surplus(names: Iterable[str], checkpoint: Checkpoint) -> None:
    surplus = sorted(names)
    if surplus:
        raise CheckpointCorrupt(f"{checkpoint.path} holds tensors that the model has no place for: {_some(surplus)}")


def _refuse_absent(names: Iterable[str], checkpoint: Checkpoint) -> None:
    wanted = sorted(names)
    if wanted:
        raise CheckpointCorrupt(
            f"the bytes of {_some(wanted)} of {checkpoint.path} are not here; fetch the model again"
        )


def _with_nan(model: nn.Module) -> Iterator[str]:
    """Yield the parameters outside the layers that were computed from what is not here."""
    for name, array in tree_flatten(model.parameters()):
        if layer_of(name) is None and mx.issubdtype(array.dtype, mx.floating) and mx.isnan(array[:1]).any():
            yield name


def _check_names(model: nn.Module, weights: dict[str, mx.array], span: LayerSpan, checkpoint: Checkpoint) -> None:
    """Make sure that nothing is missing or left over."""
    parameters = {name for name, _ in tree_flatten(model.parameters())}
    missing = sorted(parameters - set(weights))
    if missing:
        raise CheckpointCorrupt(f"{checkpoint.path} lacks tensors of layers {span}: {_some(missing)}")
    _refuse_surplus(weights.keys() - parameters, checkpoint)


def _in_dtype(model: nn.Module, weights: dict[str, mx.array], dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """Yield the weights in the type to compute in; what the architecture wants precise is not made less so."""
    may_be_cast = getattr(model, "cast_predicate", lambda name: True)
    for name, array in weights.items():
        narrows = array.dtype.size > dtype.size
        precise = narrows and (name.endswith(".global_scale") or not may_be_cast(name))
        yield name, array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) and not precise else array


def _evaluate(
    model: nn.Module, stacks: dict[str, list[mx.array]], progress: Callable[[int, int], None], expand: mx.Dtype | None
) -> None:
    """Evaluate one module at a time, expanding packed ones on the way, so that the peak stays near the final size."""
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    total = sum(_final_bytes(module, expand) for _, module in leaves)
    done = 0
    leaves.reverse()
    while leaves:
        # Taken out of the list, so that the packed weights are freed as soon as they are expanded.
        name, module = leaves.pop()
        for part in [part for part in module if f"{name}.{part}" in stacks]:
            # Taken out of the module first: it is sanitize()'s stack, which would keep every expert in memory.
            dtype = module.pop(part).dtype
            module[part] = filled(stacks.pop(f"{name}.{part}"), dtype)
        mx.eval(module.parameters())
        if expand is not None and is_packed(module):
            module = expanded(module, expand)
            model.update_modules(tree_unflatten([(name, module)]))
        done += _final_bytes(module, expand)
        progress(done, total)
        mx.clear_cache()
    # Parameters that a module keeps beside its children, such as a learned scale.
    mx.eval(model.parameters())


def _final_bytes(module: nn.Module, expand: mx.Dtype | None) -> int:
    """Bytes of a module's parameters once loaded."""
    if expand is not None and is_packed(module):
        return expanded_bytes(module, expand)
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
