"""How long this machine takes for each layer of a model, measured with weights of no meaning. Runs on the compute
thread.

A layer's time does not depend on what its weights are, so ``config.json`` is enough: nothing is downloaded. Layers of
one kind (the same modules, with parameters of the same shapes) take the same time, so one of each kind is made and run
as a stage runs it: through the model's own forward pass, with its own cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import mlx.core as mx
import psutil
from mlx import nn
from mlx.utils import tree_flatten

from runtime.errors import ModelUnsupported
from runtime.inference.anatomy import dissect
from runtime.inference.ghosts import State
from runtime.inference.loading import choose_family
from runtime.inference.reclaim import reclaim
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerCalls, LayerSeconds, LayerSpan, LoadOptions, ModelFamily

PREFILL_TOKENS = 32
DECODED_TOKENS = 8
SHARE_OF_MEMORY = 0.5
"""Of what is available, that a probe may take."""

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def probe(families: Mapping[str, ModelFamily], checkpoint: Checkpoint, options: LoadOptions) -> LayerSeconds:
    """Measure every kind of layer of a model, loaded as ``options`` say. Of a checkpoint only the configuration counts.

    Raises:
        ModelUnsupported: no family runs it, it cannot be cut, or a layer of it is too large to try.
    """
    family = choose_family(families, checkpoint)
    total = checkpoint.num_layers
    kinds: dict[Hashable, list[int]] = {}
    for index, place in enumerate(dissect(family.build(checkpoint.config), total, _calls(family, checkpoint)).layers):
        kinds.setdefault(_kind(place.module), []).append(index)
    decode, prefill = [0.0] * total, [0.0] * total
    sizes = [0] * total
    for indices in kinds.values():
        # Neither the first nor the last layer if there is another: those come with the embedding and the head.
        shard = _blank_shard(family, checkpoint, options, indices[len(indices) // 2])
        seconds = _timed(shard, family, checkpoint, options)
        for index in indices:
            decode[index], prefill[index] = seconds
            sizes[index] = shard.nbytes
        del shard
        reclaim()
    decode[-1] = _last_decode(family, checkpoint, options, decode[-1], sizes[-1])
    reclaim()
    return LayerSeconds(tuple(decode), tuple(prefill))


def _last_decode(family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions, alone: float, nbytes: int) -> float:
    """Return the seconds for a token through the last layer and the head.

    Where both are too large to try, the head counts by its bytes: reading them is what decoding spends its time on.
    """
    shard = _shard(family, checkpoint, options, _one(checkpoint, checkpoint.num_layers - 1))
    if shard.nbytes > _limit():
        return alone * shard.nbytes / nbytes
    return max(alone, _timed(shard, family, checkpoint, options)[0])


def _blank_shard(family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions, layer: int) -> Shard:
    shard = _shard(family, checkpoint, options, _one(checkpoint, layer))
    if shard.nbytes > _limit():
        raise ModelUnsupported(
            f"layer {layer} of {checkpoint.model_type} takes {shard.nbytes >> 20} MiB, which is more than a probe may"
        )
    return shard


def _one(checkpoint: Checkpoint, layer: int) -> LayerSpan:
    return LayerSpan(layer, layer + 1, checkpoint.num_layers)


def _calls(family: ModelFamily, checkpoint: Checkpoint) -> LayerCalls:
    return family.layer_calls(checkpoint.config)


def _shard(family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions, span: LayerSpan) -> Shard:
    """Make a shard, lazily, with the weights that its modules are made with."""
    shard = Shard(family.build(checkpoint.config), span, _calls(family, checkpoint))
    quantization = checkpoint.quantization
    if quantization is not None and not options.dequantize:
        _pack(shard.model, quantization)
    shard.model.set_dtype(_DTYPES[options.dtype])
    shard.model.eval()
    return shard


def _pack(model: nn.Module, quantization: Mapping[str, Any]) -> None:
    """Quantize what the shard owns as the configuration says, module by module where it says so."""

    def how(name: str, module: nn.Module) -> dict[str, Any] | bool:
        own = quantization.get(name)
        if own is False or "weight" not in module or not hasattr(module, "to_quantized"):
            return False
        section = own if isinstance(own, dict) else quantization
        settings = {key: section[key] for key in ("group_size", "bits", "mode") if key in section}
        return settings if module.weight.shape[-1] % settings.get("group_size", 64) == 0 else False

    nn.quantize(model, class_predicate=how)


def _arriving(
    shard: Shard, family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions, length: int
) -> mx.array | State:
    """Return what the stage before would send for so many tokens; of no meaning, but of the right shapes and types."""
    tokens = mx.zeros((1, length), dtype=mx.int32)
    if shard.span.is_first:
        return tokens
    before = _shard(family, checkpoint, options, LayerSpan(0, shard.span.start, checkpoint.num_layers))
    sent = before.forward(tokens, before.new_cache())  # lazy, and never evaluated
    assert isinstance(sent, dict)  # noqa: S101 - only the last stage returns logits
    return {
        name: mx.random.normal(array.shape).astype(array.dtype)
        if mx.issubdtype(array.dtype, mx.floating)
        else mx.zeros(array.shape, dtype=array.dtype)
        for name, array in sent.items()
    }


def _timed(shard: Shard, family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions) -> tuple[float, float]:
    """Return the seconds for a token, and those a token of a chunk; the best of several, as others use the machine."""
    mx.eval(shard.model.parameters())
    cache = shard.new_cache()

    def forward(length: int) -> Callable[[], float]:
        given = _arriving(shard, family, checkpoint, options, length)
        mx.eval(given)

        def run() -> float:
            start = time.perf_counter()
            mx.eval(shard.forward(given, cache), shard.state(cache), shard.ghost_state(cache))
            return time.perf_counter() - start

        return run

    prefill, decode = forward(PREFILL_TOKENS), forward(1)
    prefill()  # compiles kernels and fills buffers
    chunk = prefill()
    decode()
    return min(decode() for _ in range(DECODED_TOKENS)), min(chunk, prefill()) / PREFILL_TOKENS


def _limit() -> float:
    return float(SHARE_OF_MEMORY * psutil.virtual_memory().available)


def _kind(layer: nn.Module) -> Hashable:
    """Return what makes two layers take the same time."""
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    shapes = tuple((name, tuple(array.shape)) for name, array in tree_flatten(layer.parameters()))
    return modules, shapes
