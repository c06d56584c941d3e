"""Writing tiny checkpoints of any architecture, and loading slices of them without an executor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from runtime.spi import Checkpoint, LayerSpan, LoadOptions, read_checkpoint
from runtime.weights import build, load
from runtime.weights.layers import layer_of

PLAIN = LoadOptions("float32", dequantize=False)
_STORED = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint8: "U8",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.int64: "I64",
}


def random_model(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """Make a model with random numbers wherever it has floating-point parameters, norms and biases too."""
    mx.random.seed(seed)
    model = build(config)
    for name, array in tree_flatten(model.parameters()):
        if name.endswith(".signs"):
            values = mx.where(mx.random.normal(array.shape) > 0, 1, -1).astype(array.dtype)
        elif mx.issubdtype(array.dtype, mx.floating):
            values = (0.1 * mx.random.normal(array.shape)).astype(array.dtype)
        else:
            values = array
        model.load_weights([(name, values)], strict=False)
    return model


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """Return a model's parameters by name."""
    return dict(tree_flatten(model.parameters()))


def write(
    folder: Path,
    config: dict[str, Any],
    weights: Mapping[str, mx.array],
    *,
    files: int = 3,
    dtypes: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint of several files with an index, tensors in the order of their names.

    ``dtypes`` says for tensors of bytes what they are: safetensors has types that MLX has not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    each = math.ceil(len(names) / files)
    weight_map = {}
    for number, start in enumerate(range(0, len(names), each)):
        file = f"model-{number + 1:05}.safetensors"
        part = names[start : start + each]
        weight_map.update(dict.fromkeys(part, file))
        write_safetensors(folder / file, {name: weights[name] for name in part}, dtypes or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_safetensors(file: Path, weights: Mapping[str, mx.array], dtypes: Mapping[str, str]) -> None:
    """Write one file."""
    header, blobs, offset = {}, [], 0
    for name, array in weights.items():
        blob = bytes(np.asarray(mx.contiguous(array).flatten().view(mx.uint8)) if array.size else b"")
        header[name] = {
            "dtype": dtypes.get(name, _STORED[array.dtype]),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def loaded_by_mlx_lm(folder: Path) -> dict[str, mx.array]:
    """Return all parameters as mlx-lm's own strict loading of the whole model gives them, in float32."""
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return parameters(model)


def slice_model(checkpoint: Checkpoint, start: int, stop: int, total: int) -> nn.Module:
    """Make a model that owns nothing of the layers outside the slice."""
    model = build(checkpoint.config, checkpoint.tensors)
    span = LayerSpan(start, stop, total)
    for name, module in model.named_modules():
        layer = layer_of(f"{name}.")
        if layer is not None and layer not in span:
            for part in [part for part, value in module.items() if isinstance(value, mx.array)]:
                module.pop(part)
    return model


def loaded_slice(folder: Path, start: int, stop: int, total: int, options: LoadOptions = PLAIN) -> dict[str, mx.array]:
    """Return the parameters of a slice, and of what stands outside the layers, as the runtime loads them."""
    checkpoint = read_checkpoint(folder)
    model = slice_model(checkpoint, start, stop, total)
    load(model, checkpoint, LayerSpan(start, stop, total), options, lambda done, total: None)
    return parameters(model)


def assert_equal_parts(whole: Mapping[str, mx.array], parts: list[dict[str, mx.array]]) -> None:
    """Check that every parameter of the parts is the whole's, bit by bit, and that none is in no part."""
    for part in parts:
        unknown = part.keys() - whole.keys()
        assert not unknown
        for name, array in part.items():
            expected = whole[name]
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype), name
            assert mx.array_equal(array, expected, equal_nan=True), name
    assert set().union(*parts) == whole.keys()
