"""deepseek_v41: layers share compressed keys, and which of them to attend to, through a dictionary of the pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.spi import LayerCalls

if TYPE_CHECKING:
    import mlx.core as mx

    State = Mapping[str, mx.array]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
GROWING = ("compress_kv", "index_k")
"""What grows with the sequence, (batch, groups of tokens so far, size). Only what a step adds travels."""


class CompressedKeys(LayerCalls):
    """``layer(streams, pre_mix, start_pos=, window_idx=, cache=, shared=) -> streams, pre_mix``.

    The streams are (batch, length, streams, hidden) and travel as ``hidden``. The cache of the last ghost before the
    slice keeps what grows.
    """

    def __init__(self, ratios: list[int], sources: list[int], indexed: list[int]) -> None:
        """Take the configuration's lists.

        Args:
            ratios: for each layer the tokens that it compresses into one; 0 is none.
            sources: layers that compress keys.
            indexed: layers that choose what to attend to, of which those in ``sources`` make keys for choosing.
        """
        self._ratios = ratios
        compressing = [layer for layer in sources if layer < len(ratios) and ratios[layer]]
        self._sources = {"compress_kv": compressing, "index_k": [layer for layer in compressing if layer in indexed]}

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass both on."""
        del index, kwargs, arrived
        return args[0], args[1]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Put what arrived into the dictionary of this pass."""
        import mlx.core as mx

        del index, args
        cache, shared = kwargs["cache"], kwargs["shared"]
        for name in GROWING:
            if name in arrived:
                so_far = getattr(cache, name)
                added = arrived[name]
                setattr(cache, name, added if so_far is None else mx.concatenate([so_far, added], axis=1))
                # As the layer that makes them does: nothing at all, until there is a first.
                shared[name] = getattr(cache, name) if getattr(cache, name).shape[1] else None
        shared |= {name: arrived[name] for name in ("topk_idx", "candidates") if name in arrived}
        return arrived["hidden"], arrived["pre_mix"]

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the streams, and what is in the dictionary of this pass."""
        del arrived
        leaving["hidden"], leaving["pre_mix"] = args[0], args[1]
        start, length = kwargs["start_pos"], args[0].shape[1]
        for name, value in kwargs["shared"].items():
            if value is None:
                continue
            if name in GROWING:
                ratio = self._ratios[max(layer for layer in self._sources[name] if layer < index)]
                added = (start + length) // ratio - start // ratio
                value = value[:, value.shape[1] - added :]
            leaving[name] = value
        return True

    def keeps_cache(self, start: int) -> frozenset[int]:
        """Keep the cache of the layer just before the slice."""
        return frozenset({start - 1}) if start else frozenset()

    def advance(self, entry: Any, batch: int, length: int) -> bool:
        """Move the window on, from which every layer's positions are taken."""
        import mlx.core as mx

        entry.update_window(mx.zeros((batch, length, 1)))
        return True
