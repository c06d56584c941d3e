"""Whether a model that is cut into stages computes bit for bit what it computes whole.

Both are run over the same tokens: a prompt in chunks, steps of decoding between and after them, and then a batch of
two prompts of different lengths. What one stage hands to the next goes through the wire's tensors, as between nodes.
Runs on the thread that MLX is prepared on.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import msgspec
import psutil
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from runtime.errors import ModelError, ModelUnsupported
from runtime.inference.arrays import to_arrays, to_tensors
from runtime.inference.caches import batched
from runtime.inference.ghosts import State
from runtime.inference.loading import choose_family, load_shard
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily

CHUNKS = (tuple(range(5, 25)), (7,), (9,), tuple(range(12)), (1,))
"""Tokens of each step of one sequence: two chunks of a prompt, and decoding."""
GROUP_SIZE = 64
"""Weights that share a scale where the configuration does not say; MLX's own."""
PADDING = (0, 5)
"""Positions before each sequence of the batch that hold nothing."""


class CutResult(msgspec.Struct, frozen=True):
    """What one way to cut gave."""

    cuts: tuple[int, ...]
    """Layers that stages after the first begin with."""
    difference: float
    """Largest difference of any logit of the single sequence."""
    batch_difference: float | None
    """The same of the batch; None if the model's cache takes one sequence at a time."""
    state: tuple[str, ...]
    """Names of the arrays that cross the cuts."""

    @property
    def is_exact(self) -> bool:
        """Whether every bit is the same."""
        return not self.difference and not self.batch_difference


class Subject(ABC):
    """A model that can be had whole and in slices."""

    layers: int

    @abstractmethod
    def whole(self) -> nn.Module:
        """Return the model with its weights."""

    @abstractmethod
    def stage(self, span: LayerSpan) -> Shard:
        """Return a slice with the same weights, built anew."""


class StoredModel(Subject):
    """A model whose weights are loaded from its checkpoint, for every stage again."""

    def __init__(self, families: Mapping[str, ModelFamily], checkpoint: Checkpoint, options: LoadOptions) -> None:
        self._families = families
        self._checkpoint = checkpoint
        self._options = options
        self.layers = checkpoint.num_layers

    def whole(self) -> nn.Module:
        """Load all layers as one slice, which leaves the model as mlx-lm makes it."""
        return self.stage(LayerSpan.whole(self.layers)).model

    def stage(self, span: LayerSpan) -> Shard:
        """Load a slice."""
        return load_shard(self._families, self._checkpoint, span, self._options, lambda done, total: None)


class RandomModel(Subject):
    """A model with random weights, for which its configuration is enough. All stages share the weights."""

    def __init__(self, families: Mapping[str, ModelFamily], checkpoint: Checkpoint, dtype: str = "float32") -> None:
        """Make the weights.

        Args:
            families: those to choose from.
            checkpoint: of which only the configuration counts.
            dtype: MLX's name of the type of the weights.

        Raises:
            ModelUnsupported: no family runs it, or mlx-lm cannot build it.
            ModelError: so many random numbers do not fit in memory.
        """
        self._config = checkpoint.config
        self._family = choose_family(families, checkpoint)
        self._whole = self._family.build(self._config)
        self._whole.set_dtype(getattr(mx, dtype))
        _refuse_if_too_large(self._whole, checkpoint)
        self._whole.load_weights([(name, _random(name, array)) for name, array in _parameters(self._whole)])
        self._packed = _pack(self._whole, checkpoint.quantization)
        self._whole.eval()
        mx.eval(self._whole.parameters())
        self.layers = len(self._whole.layers)

    def whole(self) -> nn.Module:
        """Return the model itself."""
        return self._whole

    def stage(self, span: LayerSpan) -> Shard:
        """Build the model again and fill the slice."""
        shard = Shard(self._family.build(self._config), span, self._family.layer_calls(self._config))
        if self._packed:
            nn.quantize(shard.model, class_predicate=lambda name, module: self._packed.get(name, False))
        owned = {name for name, _ in _parameters(shard.model)}
        weights = [(name, array) for name, array in _parameters(self._whole) if name in owned]
        shard.model.load_weights(weights, strict=True)
        shard.model.eval()
        return shard


def check(subject: Subject, ways: Iterable[tuple[int, ...]], *, batch: bool = True) -> Iterator[CutResult]:
    """Compare the model with itself cut in each of the ``ways``, and yield what that gives.

    ``batch`` is whether to run the ragged batch too.

    Raises:
        ModelUnsupported: the model cannot be cut, or not run at all on this machine.
        ModelError: the whole model's logits of a step are all infinite or NaN, so that there is nothing to compare.
    """
    whole = subject.whole()
    try:
        single = _run([whole], [make_prompt_cache(whole)], _tokens(1))[0]
    except RuntimeError as error:  # MLX's own, such as of a kernel that this device has not
        raise ModelUnsupported(f"mlx-lm does not run {type(whole).__module__} on this machine: {error}") from error
    _refuse_if_not_finite(single, whole, "")
    many = _run_batch(whole) if batch else None
    if many is not None:
        _refuse_if_not_finite(many, whole, " of the batch")
    for cuts in ways:
        stages = [subject.stage(LayerSpan(*span, subject.layers)) for span in pairwise((0, *cuts, subject.layers))]
        forwards = [stage.forward for stage in stages]
        logits, state = _run(forwards, [stage.new_cache() for stage in stages], _tokens(1))
        yield CutResult(
            cuts=cuts,
            difference=_difference(single, logits),
            batch_difference=None
            if many is None
            else _difference(many, _run(forwards, [stage.new_cache(PADDING) for stage in stages], _tokens(2))[0]),
            state=tuple(sorted(state)),
        )


def _run_batch(whole: nn.Module) -> list[mx.array] | None:
    """Run the batch through the whole model; None if it does not take one."""
    try:
        cache = [batched(entry, PADDING) for entry in make_prompt_cache(whole)]
        return _run([whole], [cache], _tokens(2))[0]
    except (ModelUnsupported, TypeError, ValueError):
        # Some models of mlx-lm take the position of the cache for one number.
        return None


def _run(
    stages: Sequence[Callable[..., Any]], caches: Sequence[list[Any]], steps: Iterable[mx.array]
) -> tuple[list[mx.array], set[str]]:
    """Run steps through stages; return the logits of each step, and the names of what went between stages."""
    found: list[mx.array] = []
    names: set[str] = set()
    for tokens in steps:
        given: mx.array | State = tokens
        for stage, cache in zip(stages, caches, strict=True):
            given = stage(given, cache=cache)
            mx.eval(given, [entry.state for entry in cache])
            if isinstance(given, dict):
                names |= given.keys()
                given = to_arrays(to_tensors(given))
        assert isinstance(given, mx.array), "the last stage gives logits"  # noqa: S101 - for the types
        found.append(given)
    return found, names


def _tokens(batch: int) -> list[mx.array]:
    """Return the steps for one sequence, or for two of which the second begins with padding."""
    rows = [[[token * 7 % 89 + 3 * row for token in chunk] for chunk in CHUNKS] for row in range(batch)]
    return [mx.array(step, dtype=mx.int32) for step in zip(*rows, strict=True)]


def _refuse_if_not_finite(steps: Sequence[mx.array], whole: nn.Module, of: str) -> None:
    for number, logits in enumerate(steps, start=1):
        if not mx.isfinite(logits).any().item():
            raise ModelError(
                f"nothing can be compared: {type(whole).__module__} computes no finite logit in step {number}{of}, "
                "whole as it is; its weights are damaged, or the type it computes in is too narrow for them"
            )


def _difference(expected: Sequence[mx.array], found: Sequence[mx.array]) -> float:
    """Return the largest difference; an infinity or a NaN in both at the same place is none."""
    return max(
        0.0 if mx.array_equal(one, other, equal_nan=True).item() else _largest(one, other)
        for one, other in zip(expected, found, strict=True)
    )


def _largest(one: mx.array, other: mx.array) -> float:
    if one.shape != other.shape:
        return float("inf")
    apart = mx.abs(one.astype(mx.float32) - other.astype(mx.float32))
    same = (one == other) | (mx.isnan(one) & mx.isnan(other))
    return float(mx.where(same, 0.0, mx.where(mx.isnan(apart), float("inf"), apart)).max().item())


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    flat: list[tuple[str, mx.array]] = tree_flatten(model.parameters())
    return flat


def _refuse_if_too_large(model: nn.Module, checkpoint: Checkpoint) -> None:
    needed = sum(array.nbytes for _, array in _parameters(model))
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelError(
            f"random weights for {checkpoint.path} take {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; "
            "lower the number of layers, or the width, in a copy of its config.json"
        )


def _random(name: str, array: mx.array) -> mx.array:
    """Return what the model would begin with, with noise on top; the same for the same name.

    Without the noise many a norm, bias or gain is all ones or zeros, and would hide that the wrong one is used.
    """
    key = mx.random.key(zlib.crc32(name.encode()))
    if not mx.issubdtype(array.dtype, mx.floating):  # packed weights, of which any bits will do
        return mx.random.randint(0, 1 << 30, array.shape, key=key).astype(array.dtype)
    return array + (0.1 * mx.random.normal(array.shape, key=key)).astype(array.dtype)


def _pack(model: nn.Module, quantization: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Quantize as ``config.json`` says; return the settings of each module that is packed now."""
    if quantization is None:
        return {}
    common: dict[str, Any] = {
        name: quantization[name] for name in ("group_size", "bits", "mode") if name in quantization
    }
    settings: dict[str, dict[str, Any]] = {}

    def how(name: str, module: nn.Module) -> dict[str, Any] | bool:
        own = quantization.get(name, True)
        if own is False or not hasattr(module, "to_quantized"):
            return False
        wanted: dict[str, Any] = {**common, **own} if isinstance(own, dict) else common
        if module.weight.shape[-1] % wanted.get("group_size", GROUP_SIZE):
            return False
        settings[name] = wanted
        return wanted

    nn.quantize(model, class_predicate=how)
    return settings
