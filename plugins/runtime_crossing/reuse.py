"""Architectures whose last layers attend with the keys and values of earlier ones.

A slice after such an earlier layer keeps a copy of that layer's cache: the keys and values of each step travel to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.spi import LayerCalls

if TYPE_CHECKING:
    import mlx.core as mx

    State = Mapping[str, mx.array]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class ReusedKeys(LayerCalls):
    """What these architectures share. ``sources[i]`` is the layer whose keys and values layer ``i`` attends with."""

    def __init__(self, sources: list[int]) -> None:
        self._sources = sources

    def reads_keys(self, boundary: int) -> frozenset[int]:
        """Return the earlier layers whose keys are read again."""
        return frozenset(source for source in self._sources[boundary:] if source < boundary)

    def fill(self, index: int, cache: Any, arrived: State) -> tuple[Any, Any] | None:
        """Put what arrived into the copy of layer ``index``'s cache; return all its keys and values, or None."""
        if f"keys.{index}" not in arrived:
            return None
        keys, values = cache.update_and_fetch(arrived[f"keys.{index}"], arrived[f"values.{index}"])
        return keys, values


class LastLayersReuse(ReusedKeys):
    """afm7: ``layer(x, mask, cache=) -> x``, then for the last layers ``layer(x, keys, values, mask) -> x``."""

    def __init__(self, total: int, reusing: int) -> None:
        own = total - reusing
        super().__init__([min(layer, own - 1) for layer in range(total)])
        self._own = own

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass the hidden state on."""
        if index < self._own:
            self.fill(index, kwargs["cache"], arrived)
        return args[0]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Return the hidden state."""
        self.skip(index, args, kwargs, arrived)
        return arrived["hidden"]


class PerLayerInputs(ReusedKeys):
    """What gemma3n and gemma4 share: besides, each layer takes an input of its own, made of the token alone.

    Inputs of the layers to come travel as ``inputs``, (batch, length, layers to come, size).
    """

    adapts = True

    def own_input(self, index: int, arrived: State) -> mx.array:
        """Return the input of layer ``index`` from what arrived."""
        inputs = arrived["inputs"]
        return inputs[:, :, inputs.shape[2] - len(self._sources) + index]

    def send_inputs(self, index: int, own: Any, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Put the inputs of layers ``index`` and up into ``leaving``; False until the last layer's was seen.

        Args:
            index: of the layer that is called.
            own: the input that it is called with, or None where the model has no such inputs.
            arrived: a later stage sends on what it was sent.
            leaving: where they go.
        """
        import mlx.core as mx

        if own is None:
            return True
        last = len(self._sources) - 1
        if "inputs" in arrived:
            inputs = arrived["inputs"]
            leaving["inputs"] = inputs[:, :, inputs.shape[2] - 1 - last + index :]
            return True
        leaving[f"inputs.{index}"] = own
        if index < last:
            return False
        parts = sorted((name for name in leaving if name.startswith("inputs.")), key=lambda name: int(name[7:]))
        leaving["inputs"] = mx.stack([leaving.pop(name) for name in parts], axis=2)
        return True


class Gemma3n(PerLayerInputs):
    """``layer(x, mask, cache, per_layer_input, offset=) -> x``, where x is (streams, batch, length, hidden).

    The hidden state travels as (batch, length, streams, hidden).
    """

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass the hidden state on; a layer that reuses keys gets the cache of the one that it reuses."""
        del kwargs
        if self._sources[index] == index:
            self.fill(index, args[2], arrived)
        return args[0]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Return the streams."""
        import mlx.core as mx

        self.skip(index, args, kwargs, arrived)
        return mx.contiguous(mx.moveaxis(arrived["hidden"], 2, 0))

    def adapt(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> tuple[Args, Kwargs]:
        """Put in the layer's own input."""
        if "inputs" in arrived:
            args = (*args[:3], self.own_input(index, arrived))
        return args, kwargs

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the streams, and the inputs of the layers to come."""
        import mlx.core as mx

        del kwargs
        if "hidden" not in leaving:
            leaving["hidden"] = mx.contiguous(mx.moveaxis(args[0], 0, 2))
        return self.send_inputs(index, args[3], arrived, leaving)


class Gemma4(PerLayerInputs):
    """``layer(x, mask, cache, per_layer_input=, shared_kv=, offset=) -> x, (keys, values), offset``."""

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass on the hidden state, with the keys and values of a layer whose cache is copied here."""
        import mlx.core as mx

        cache = args[2]
        offset = None if cache is None else mx.array(cache.offset)
        return args[0], self.fill(index, cache, arrived) or (None, None), offset if cache is not None else None

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Return the hidden state that arrived, and the rest as :meth:`skip`."""
        return (arrived["hidden"], *self.skip(index, args, kwargs, arrived)[1:])

    def adapt(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> tuple[Args, Kwargs]:
        """Put in the layer's own input."""
        if "inputs" in arrived:
            kwargs = {**kwargs, "per_layer_input": self.own_input(index, arrived)}
        return args, kwargs

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the hidden state, and the inputs of the layers to come."""
        leaving.setdefault("hidden", args[0])
        return self.send_inputs(index, kwargs["per_layer_input"], arrived, leaving)
