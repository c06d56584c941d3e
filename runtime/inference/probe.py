"""How long this machine takes for each layer of a model, measured with weights of no meaning. Runs on the compute
thread.

A layer's time does not depend on what its weights are, so ``config.json`` is enough: nothing is downloaded. Layers of
one kind (the same modules, with parameters of the same shapes) take the same time, so one of each kind is made and run
as a stage runs it: through the model's own forward pass, with its own cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import psutil
from mlx import nn
from mlx.utils import tree_flatten

from runtime.errors import ModelUnsupported
from runtime.inference.anatomy import dissect
from runtime.inference.batchable import reason_against
from runtime.inference.loading import choose_family
from runtime.inference.reclaim import reclaim
from runtime.inference.shard import Shard
from runtime.spi import BATCHED, Checkpoint, LayerSeconds, LayerSpan, LoadOptions, ModelFamily

PREFILL_TOKENS = 32
CHUNKS = 2
TOKENS = 8
BATCHES = 4
"""Runs of each that are timed."""
SHARE_OF_MEMORY = 0.5
"""Of what is available, that a probe may take."""

Arriving = Any
"""Token ids, or what the stage before returns: arrays by name."""

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def probe(
    families: Mapping[str, ModelFamily],
    checkpoint: Checkpoint,
    options: LoadOptions,
    got_on: Callable[[], None] = lambda: None,
) -> LayerSeconds:
    """Measure every kind of layer of a model, loaded as ``options`` say. Of a checkpoint only the configuration counts.

    ``got_on`` is called after each run that is timed.

    Raises:
        ModelUnsupported: no family runs it, it cannot be cut, or a layer of it is too large to try.
    """
    blank = _Blank(choose_family(families, checkpoint), checkpoint, options)
    total = checkpoint.num_layers
    taken: list[_Taken] = [_Taken(0.0, 0.0, 0.0)] * total
    sizes = [0] * total
    for indices in blank.kinds():
        # Neither the first nor the last layer if there is another: those come with the embedding and the head.
        layer = indices[len(indices) // 2]
        shard = blank.shard(layer, layer + 1)
        if shard.nbytes > _limit():
            raise ModelUnsupported(
                f"layer {layer} of {checkpoint.model_type} takes {shard.nbytes >> 20} MiB, more than a probe may take"
            )
        seconds = _timed(shard, blank, got_on)
        for index in indices:
            taken[index], sizes[index] = seconds, shard.nbytes
        del shard
        reclaim()
    last = blank.shard(total - 1, total)
    if last.nbytes <= _limit():
        found = _timed(last, blank, got_on)
        decode, batched = max(taken[-1].decode, found.decode), max(taken[-1].batched, found.batched)
    else:
        # The head counts by its bytes: each is read, and has its share of the products, once a step.
        larger = last.nbytes / sizes[-1]
        decode, batched = taken[-1].decode * larger, taken[-1].batched * larger
    taken[-1] = taken[-1]._replace(decode=decode, batched=batched)
    del last
    reclaim()
    return LayerSeconds(*(tuple(each) for each in zip(*taken, strict=True)))


class _Taken(NamedTuple):
    """A layer's seconds, as :class:`~runtime.spi.LayerSeconds` has them."""

    decode: float
    batched: float
    prefill: float


class _Blank:
    """A model without its weights: makes slices of it, lazily, with the weights that its modules are made with."""

    def __init__(self, family: ModelFamily, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self._family = family
        self._checkpoint = checkpoint
        self._options = options
        self._calls = family.layer_calls(checkpoint.config)
        self.batches = reason_against(family, checkpoint) is None
        """Whether several sequences may decode in one step."""

    def kinds(self) -> list[list[int]]:
        """Return the layers, those together that take the same time."""
        layers = dissect(self._family.build(self._checkpoint.config), self._checkpoint.num_layers, self._calls).layers
        kinds: dict[Hashable, list[int]] = {}
        for index, place in enumerate(layers):
            kinds.setdefault(_kind(place.module), []).append(index)
        return list(kinds.values())

    def shard(self, start: int, stop: int) -> Shard:
        """Make a slice."""
        checkpoint, options = self._checkpoint, self._options
        span = LayerSpan(start, stop, checkpoint.num_layers)
        shard = Shard(self._family.build(checkpoint.config), span, self._calls)
        if checkpoint.quantization is not None and not options.dequantize:
            _pack(shard.model, checkpoint.quantization)
        shard.model.set_dtype(_DTYPES[options.dtype])
        shard.model.eval()
        return shard

    def inputs(self, start: int, sequences: int = 1) -> tuple[Arriving, Arriving]:
        """Return what a stage that starts at this layer is given for a chunk, and then for a token, at random.

        Of each of so many sequences. What comes from the stage before is found by running the layers before, lazily:
        nothing of them is evaluated.
        """
        chunk, token = (mx.zeros((sequences, length), dtype=mx.int32) for length in (PREFILL_TOKENS, 1))
        if start == 0:
            return chunk, token
        before = self.shard(0, start)
        cache = before.new_cache()
        return _random_like(before.forward(chunk, cache)), _random_like(before.forward(token, cache))


def _random_like(arriving: Arriving) -> Arriving:
    """Return arrays of the same shapes and types; random, so that experts are chosen as variously as for a text."""
    return {
        name: mx.random.normal(array.shape).astype(array.dtype)
        if mx.issubdtype(array.dtype, mx.floating)
        else mx.zeros(array.shape, dtype=array.dtype)
        for name, array in arriving.items()
    }


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


def _timed(shard: Shard, blank: _Blank, got_on: Callable[[], None]) -> _Taken:
    """Measure a slice; the best of several runs counts, as others use the machine."""
    mx.eval(shard.model.parameters())
    chunk, token = blank.inputs(shard.span.start)
    mx.eval(chunk, token)

    def seconds(given: Arriving, cache: list[Any]) -> float:
        start = time.perf_counter()
        mx.eval(shard.forward(given, cache), shard.state(cache))
        taken = time.perf_counter() - start
        got_on()
        return taken

    chunks = []
    for _ in range(1 + CHUNKS):
        cache = shard.new_cache()
        chunks.append(seconds(chunk, cache))
    tokens = [seconds(token, cache) for _ in range(1 + TOKENS)]
    # The first of each compiles kernels and fills buffers.
    decode, prefill = min(tokens[1:]), min(chunks[1:]) / PREFILL_TOKENS
    if not blank.batches:
        return _Taken(decode, decode, prefill)
    together = shard.new_cache([0] * BATCHED)
    _, batch = blank.inputs(shard.span.start, BATCHED)
    mx.eval(batch)
    batches = [seconds(batch, together) for _ in range(1 + BATCHES)]
    return _Taken(decode, min(batches[1:]) / BATCHED, prefill)


def _limit() -> float:
    return float(SHARE_OF_MEMORY * psutil.virtual_memory().available)


def _kind(layer: nn.Module) -> Hashable:
    """Return what makes two layers take the same time."""
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    shapes = tuple((name, tuple(array.shape)) for name, array in tree_flatten(layer.parameters()))
    return modules, shapes
