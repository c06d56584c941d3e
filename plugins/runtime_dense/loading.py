"""Building a dense model, and loading the tensors of one slice, strictly. Imports MLX."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import infer_quant_config

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.spi import Checkpoint, LayerSpan, LoadOptions
from runtime_dense.architectures import module_name

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
BLOCK_ELEMENTS = 1 << 20
"""Weights that are unpacked at once."""
_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def build(config: dict[str, Any]) -> nn.Module:
    """Make mlx-lm's model for a configuration."""
    module = importlib.import_module(f"mlx_lm.models.{module_name(config)}")
    try:
        return module.Model(module.ModelArgs.from_dict(config))
    except Exception as error:
        # mlx-lm computes with what the configuration says, and raises whatever comes of that.
        raise ModelUnsupported(
            f"mlx-lm cannot build a {config['model_type']} from this config.json: {error!r}"
        ) from error


def load(
    model: nn.Module,
    checkpoint: Checkpoint,
    span: LayerSpan,
    options: LoadOptions,
    progress: Callable[[int, int], None],
) -> None:
    """Load what the model owns; see :class:`runtime.spi.ModelFamily`."""
    weights = _read(checkpoint, span)
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    weights = _owned(model, weights, span, checkpoint.path)
    _quantize(model, weights, checkpoint.path)
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        raise CheckpointCorrupt(f"{checkpoint.path} does not fit its own config.json: {error}") from error
    model.set_dtype(_DTYPES[options.dtype])
    model.eval()
    weights.clear()
    _evaluate(model, checkpoint.path, progress, dequantize=options.dequantize)


def _read(checkpoint: Checkpoint, span: LayerSpan) -> dict[str, mx.array]:
    """Return the tensors that can be the slice's, lazily: a file is read when a tensor of it is evaluated."""
    wanted = [
        tensor
        for tensor in checkpoint.tensors.values()
        if tensor.name not in checkpoint.absent and _may_belong(tensor.name, span)
    ]
    by_file: dict[Path, list[str]] = {}
    for tensor in wanted:
        by_file.setdefault(tensor.file, []).append(tensor.name)
    weights: dict[str, mx.array] = {}
    for file, names in by_file.items():
        try:
            arrays = mx.load(str(file))
        except RuntimeError as error:
            raise CheckpointCorrupt(f"{file} cannot be read: {error}") from error
        weights.update((name, arrays[name]) for name in names)
    return weights


def _may_belong(name: str, span: LayerSpan) -> bool:
    """Whether a tensor is of a layer in the slice, or of no layer; which of the latter are ours the model knows."""
    match = _LAYER.search(name)
    return match is None or int(match.group(1)) in span


def _owned(model: nn.Module, weights: dict[str, mx.array], span: LayerSpan, path: Path) -> dict[str, mx.array]:
    """Drop the endpoints that other stages own, and make sure that nothing is missing or left over."""
    owned = {name for name, _ in tree_flatten(model.parameters())}
    modules = {name.rpartition(".")[0] for name in owned}
    kept = {name: array for name, array in weights.items() if name.rpartition(".")[0] in modules}
    surplus = sorted(
        name
        for name in weights
        if name not in kept and (_LAYER.search(name) is not None or (span.is_first and span.is_last))
    )
    if surplus:
        raise CheckpointCorrupt(f"{path} holds tensors that the model has no place for: {_some(surplus)}")
    missing = sorted(owned - set(kept))
    if missing:
        raise CheckpointCorrupt(f"{path} lacks tensors of layers {span}: {_some(missing)}")
    return kept


def _quantize(model: nn.Module, weights: dict[str, mx.array], path: Path) -> None:
    """Swap in quantized layers wherever the checkpoint holds packed weights."""
    if not any(name.endswith(".scales") for name in weights):
        return

    def how(name: str, module: nn.Module) -> dict[str, Any] | bool:
        if f"{name}.scales" not in weights:
            return False
        try:
            settings: dict[str, Any] = infer_quant_config(name, module, weights)
        except (ArithmeticError, LookupError, ValueError) as error:
            # mlx-lm computes the settings from the shapes, whatever those are.
            raise CheckpointCorrupt(f"{path} holds scales for {name} that do not fit its weights: {error}") from error
        return settings

    try:
        nn.quantize(model, class_predicate=how)
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} holds weights packed in a way that MLX does not know: {error}") from error


def _evaluate(model: nn.Module, path: Path, progress: Callable[[int, int], None], *, dequantize: bool) -> None:
    """Evaluate one module at a time, expanding packed ones on the way, so that the peak stays near the final size."""
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    total = sum(_final_bytes(module, dequantize) for _, module in leaves)
    done = 0
    try:
        leaves.reverse()
        while leaves:
            # Taken out of the list, so that the packed weights are freed as soon as they are expanded.
            name, module = leaves.pop()
            mx.eval(module.parameters())
            if dequantize and _is_packed(module):
                module = _expanded(module)
                model.update_modules(tree_unflatten([(name, module)]))
            done += _final_bytes(module, dequantize)
            progress(done, total)
            mx.clear_cache()
        # Parameters that a module keeps beside its children, such as a learned scale.
        mx.eval(model.parameters())
    except (RuntimeError, ValueError) as error:  # MLX's own, of reading and of shapes that do not fit
        raise CheckpointCorrupt(f"reading the weights in {path} failed: {error}") from error


def _is_packed(module: nn.Module) -> bool:
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)


def _final_bytes(module: nn.Module, dequantize: bool) -> int:
    """Bytes of a module's parameters once loaded."""
    if dequantize and _is_packed(module):
        packed = sum(array.nbytes for name, array in module.items() if name not in ("weight", "scales", "biases"))
        return int(module.weight.size * 32 // module.bits * module.scales.itemsize + packed)
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


def _expanded(packed: nn.Module) -> nn.Module:
    """Return a packed linear layer or embedding with its weights unpacked.

    On a CPU ``mx.dequantize`` takes as much again as its result while it works, so it is given some rows at a time.
    """
    rows, columns = packed.weight.shape[0], packed.weight.shape[1] * 32 // packed.bits
    weight = mx.zeros((rows, columns), dtype=packed.scales.dtype)
    block = max(1, BLOCK_ELEMENTS // columns)
    for start in range(0, rows, block):
        part = slice(start, start + block)
        biases = packed.get("biases")
        weight[part] = mx.dequantize(
            packed.weight[part],
            packed.scales[part],
            None if biases is None else biases[part],
            packed.group_size,
            packed.bits,
            packed.mode,
        )
        mx.eval(weight)
    if isinstance(packed, nn.QuantizedEmbedding):
        embedding = nn.Embedding(1, 1)
        embedding.weight = weight
        return embedding
    linear = nn.Linear(1, 1, bias="bias" in packed)
    linear.weight = weight
    if "bias" in packed:
        linear.bias = packed.bias
    return linear


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
