"""A dense Llama made into a Mixtral that generates the same text.

Each expert is a copy of the layer's feed-forward network, so it does not matter which ones a token is sent to: their
outputs are equal, and the weights of the chosen ones add up to one. Training goes on from there in sparse upcycling
(https://arxiv.org/abs/2212.05055).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.spi import Checkpoint, read_checkpoint
from runtime.spi.digest import TOKENIZER_FILES

if TYPE_CHECKING:
    import mlx.core as mx

_EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def upcycled_mixtral(path: Path, dense: Path, *, experts: int = 2, files: int = 4, seed: int = 0) -> Path:
    """Write a Mixtral as Hugging Face has them, expert by expert, in float32.

    Args:
        path: the folder to write; made where it is missing.
        dense: the folder of a Llama whose head is its embedding. Packed weights are expanded.
        experts: in each layer, at least two. Two are used for each token; which ones, a random router decides.
        files: number of safetensors files. Tensors go in the order of their names, so files end within layers.
        seed: of the routers.

    Returns:
        ``path``.
    """
    import mlx.core as mx

    path.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(dense)
    layers, hidden = checkpoint.num_layers, checkpoint.config["hidden_size"]
    mx.random.seed(seed)
    weights = {
        f"model.layers.{layer}.block_sparse_moe.gate.weight": mx.random.normal((experts, hidden))
        for layer in range(layers)
    }
    for name, array in _expanded(checkpoint):
        layer, found, part = name.partition(".mlp.")
        if found:
            projection = _EXPERT_NAMES[part.removesuffix(".weight")]
            weights.update(
                (f"{layer}.block_sparse_moe.experts.{expert}.{projection}.weight", array) for expert in range(experts)
            )
        else:
            weights[name] = array
    _write(path, weights, files)
    config = {name: value for name, value in checkpoint.config.items() if not name.startswith("quantization")}
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "float32"}
    config |= {"num_local_experts": experts, "num_experts_per_tok": 2}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in TOKENIZER_FILES:
        if (dense / file).is_file():
            shutil.copy(dense / file, path / file)
    return path


def _expanded(checkpoint: Checkpoint) -> Iterator[tuple[str, mx.array]]:
    """Yield a checkpoint's tensors by name, in float32."""
    import mlx.core as mx

    arrays: dict[str, mx.array] = {}
    for file in {tensor.file for tensor in checkpoint.tensors.values()}:
        arrays.update(mx.load(str(file)))
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        if f"{module}.scales" not in arrays:
            yield name, array.astype(mx.float32)
        elif part == "weight":
            scales, biases = (arrays[f"{module}.{each}"].astype(mx.float32) for each in ("scales", "biases"))
            group = (checkpoint.quantization or {})["group_size"]
            bits = array.shape[1] * 32 // (scales.shape[1] * group)
            yield name, mx.dequantize(array, scales, biases, group, bits)


def _write(path: Path, weights: dict[str, mx.array], files: int) -> None:
    import mlx.core as mx

    names = sorted(weights)
    each = math.ceil(len(names) / files)
    weight_map = {}
    for start in range(0, len(names), each):
        file = f"model-{start // each + 1:05}-of-{files:05}.safetensors"
        mx.save_safetensors(str(path / file), {name: weights[name] for name in names[start : start + each]})
        weight_map.update(dict.fromkeys(names[start : start + each], file))
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
