"""What a model is made of, found out by following one lazy forward pass.

Which parts run before the layers and which after them, and which entries of the cache each layer takes, is written
nowhere but in the model's own code. So the pass is run once over a token that nobody evaluates, with a witness in the
place of each part. Nothing is allocated, and the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from runtime.errors import ModelUnsupported
from runtime.inference.ghosts import Ghost
from runtime.spi import LayerCalls


class Place(msgspec.Struct, frozen=True):
    """Where a module hangs: ``holder[key]`` is it."""

    holder: Any
    """A module, or a list of modules in one."""
    key: Any

    @property
    def module(self) -> nn.Module:
        """What hangs there now."""
        return self.holder[self.key]


class Anatomy(msgspec.Struct, frozen=True):
    """The parts of a model."""

    layers: tuple[Place, ...]
    """In the order in which they run."""
    before: tuple[Place, ...]
    """Parts that run before the first layer and not after."""
    both: tuple[Place, ...]
    """Parts that run before the first layer and again after the last: an embedding that is the head too."""
    after: tuple[Place, ...]
    """Parts that run after the first layer began, or that text never reaches."""
    loose: tuple[Place, ...]
    """Arrays outside the layers that belong to no part; they are used after the layers."""
    entries: tuple[frozenset[int], ...]
    """For each entry of the model's cache, the layers that take it."""


class _Witness(Ghost):
    """Notes when a part outside the layers is used, and runs it."""

    def __init__(self, stands_for: nn.Module, seen: set[str], phase: list[str]) -> None:
        super().__init__(stands_for)
        object.__setattr__(self, "_seen", seen)
        object.__setattr__(self, "_phase", phase)

    def __getattr__(self, name: str) -> Any:
        object.__getattribute__(self, "_seen").add(object.__getattribute__(self, "_phase")[0])
        return super().__getattr__(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        object.__getattribute__(self, "_seen").add(object.__getattribute__(self, "_phase")[0])
        return object.__getattribute__(self, "_stands_for")(*args, **kwargs)


class _LayerWitness(Ghost):
    """Notes that a layer is called, and with which entries of the cache."""

    def __init__(self, stands_for: nn.Module, index: int, calls: LayerCalls, order: list[tuple[int, set[int]]]) -> None:
        super().__init__(stands_for)
        object.__setattr__(self, "_note", (index, calls, order))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        index, calls, order = object.__getattribute__(self, "_note")
        order.append((index, {id(each) for value in (*args, *kwargs.values()) for each in _flat(value)}))
        return calls.skip(index, args, kwargs, {})


def dissect(model: nn.Module, total: int, calls: LayerCalls) -> Anatomy:
    """Follow a forward pass of a model with ``total`` layers.

    Raises:
        ModelUnsupported: it does not call that many layers once each, one after the other.
    """
    layers = list(getattr(model, "layers", None) or ())
    name = type(model).__module__.rpartition(".")[2]
    places = [_place(model, layer) for layer in layers]
    if len(layers) != total:
        raise ModelUnsupported(f"{name} has {len(layers)} layers and not {total}, as its configuration says")
    if None in places:
        raise ModelUnsupported(f"{name} does not keep its layers in lists, so it cannot be cut")
    slots = [place for place in places if place is not None]
    parts, loose = _parts(model, layers)
    seen: list[set[str]] = [set() for _ in parts]
    order: list[tuple[int, set[int]]] = []
    cache = make_prompt_cache(model)
    for entry in cache:
        _put_one_token_in(entry)
    with _restored(model):
        phase = ["before"]
        for part, used in zip(parts, seen, strict=True):
            part.holder[part.key] = _Witness(part.module, used, phase)
        for index, slot in enumerate(slots):
            slot.holder[slot.key] = _LayerWitness(slot.module, index, _Phased(calls, phase), order)
        try:
            model(mx.zeros((1, 1), dtype=mx.int32), cache=cache)
        except Exception as error:
            # What a model's own code does with a layer that is none can be anything.
            if order:
                raise ModelUnsupported(f"{name} cannot be followed from layer to layer: {error!r}") from error
    called = [index for index, _ in order]
    if called != list(range(total)):
        how = (
            "more than once" if len(called) > total else "from outside, part by part" if not called else "out of order"
        )
        raise ModelUnsupported(f"{name} runs its layers {how}, so no stage could hand them on to the next")
    return Anatomy(
        layers=tuple(slots),
        before=tuple(part for part, used in zip(parts, seen, strict=True) if used == {"before"}),
        both=tuple(part for part, used in zip(parts, seen, strict=True) if used == {"before", "after"}),
        after=tuple(part for part, used in zip(parts, seen, strict=True) if "before" not in used),
        loose=tuple(loose),
        entries=tuple(
            frozenset(index for index, taken in order if not taken.isdisjoint(map(id, _flat(entry)))) for entry in cache
        ),
    )


class _Phased(LayerCalls):
    """Another's calls; the first of them ends the phase before the layers."""

    def __init__(self, calls: LayerCalls, phase: list[str]) -> None:
        self._calls = calls
        self._phase = phase

    def skip(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], arrived: Mapping[str, mx.array]) -> Any:
        """Pass the call on."""
        self._phase[0] = "after"
        return self._calls.skip(index, args, kwargs, arrived)


def _parts(model: nn.Module, layers: list[nn.Module]) -> tuple[list[Place], list[Place]]:
    """Return the modules, and the arrays, beside the way from the model down to its layers."""
    parts, loose = [], []
    own = {id(module) for layer in layers for module in layer.modules()}
    on_the_way = [
        module
        for module in model.modules()
        if id(module) not in own and any(id(part) in own for part in module.modules())
    ]
    for holder in on_the_way:
        for key, value in holder.items():
            if isinstance(value, mx.array):
                if not key.startswith("_"):
                    loose.append(Place(holder, key))
            elif isinstance(value, nn.Module):
                if not any(value is each for each in on_the_way):
                    parts.append(Place(holder, key))
            elif isinstance(value, list) and value and all(isinstance(each, nn.Module) for each in value):
                parts.extend(Place(value, at) for at, each in enumerate(value) if id(each) not in own)
    return parts, loose


def _place(model: nn.Module, layer: nn.Module) -> Place | None:
    """Return where a layer hangs: ``model.layers`` may be a copy of the list that the model iterates over."""
    for module in model.modules():
        for value in module.values():
            if isinstance(value, list):
                for at, each in enumerate(value):
                    if each is layer:
                        return Place(value, at)
    return None


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put back what the pass changes in the model: our witnesses, and what modules work out once and keep."""
    modules = list(model.modules())
    lists = [value for module in modules for value in module.values() if isinstance(value, list)]
    kept = [(module, dict(module), dict(vars(module))) for module in modules]
    contents = [(value, list(value)) for value in lists]
    try:
        yield
    finally:
        for value, before in contents:
            value[:] = before
        for module, items, attributes in kept:
            dict.clear(module)
            dict.update(module, items)  # nn.Module has another method of that name
            vars(module).clear()
            vars(module).update(attributes)


def _put_one_token_in(entry: Any) -> None:
    """Fill an entry as a layer would, since some models read it back after the layers."""
    blank = mx.zeros((1, 1, 1, 1))
    for each in _flat(entry):
        if hasattr(each, "update_and_fetch"):
            each.update_and_fetch(blank, blank)


def _flat(entry: Any) -> list[Any]:
    """Return a cache entry and those in it: of some layers only a part is handed on."""
    inner = getattr(entry, "caches", None)
    return [entry, *inner] if inner is not None else [entry]
