"""How architectures whose layers hand on several arrays call them, and what of those must travel.

In each class the arguments are those of the architecture's own decoder layer, in its order.
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


class SkippedEmbedding(LayerCalls):
    """talkie: every layer adds the normalized embedding again. ``layer(embedding, x, mask, cache) -> x``."""

    adapts = True

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass the hidden state on."""
        del index, kwargs, arrived
        return args[1]

    def adapt(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> tuple[Args, Kwargs]:
        """Put the embedding that arrived in the place of the silent one."""
        del index
        return (arrived.get("embedding", args[0]), *args[1:]), kwargs

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the embedding with the hidden state; a later stage sends on what it was sent."""
        del index, kwargs
        leaving["embedding"] = arrived.get("embedding", args[0])
        leaving["hidden"] = args[1]
        return True


class FirstValues(LayerCalls):
    """rwkv7: each layer mixes in the values of the first. ``layer(x, first_values, cache) -> x, first_values``."""

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass both on."""
        del index, kwargs, arrived
        return args[0], args[1]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Return both."""
        del index, args, kwargs
        return arrived["hidden"], arrived["first_values"]

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send both."""
        del index, kwargs, arrived
        leaving["hidden"], leaving["first_values"] = args[0], args[1]
        return True


class SharedProjections(LayerCalls):
    """hunyuan: some layers attend with the keys and values projected by the one before.

    ``layer(x, mask, cache, projected) -> x, projected``; ``projected`` is None for a layer with projections of its own.
    """

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass both on."""
        del index, kwargs, arrived
        return args[0], args[3]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Return the hidden state, and the projections if the next layer wants them."""
        del index, args, kwargs
        projected = (arrived["keys"], arrived["values"]) if "keys" in arrived else None
        return arrived["hidden"], projected

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the hidden state, and the projections if layer ``index`` wants them."""
        del index, kwargs, arrived
        leaving["hidden"] = args[0]
        if args[3] is not None:
            leaving["keys"], leaving["values"] = args[3]
        return True


class ResidualBlocks(LayerCalls):
    """kimi_k3: layers attend to the sums of earlier blocks of layers.

    ``layer(x, mask=, cache=, blocks=) -> x, blocks``; ``blocks.raw`` is (blocks, batch, length, hidden), and
    ``blocks.inv_rms`` the inverse of its norms (blocks, batch, length).
    """

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass both on."""
        del index, arrived
        return args[0], kwargs["blocks"]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Fill the blocks of this pass."""
        del index, args
        blocks = kwargs["blocks"]
        if "blocks" in arrived:
            blocks.raw, blocks.inv_rms = arrived["blocks"], arrived["norms"]
        return arrived["hidden"], blocks

    def leave(self, index: int, args: Args, kwargs: Kwargs, arrived: State, leaving: dict[str, mx.array]) -> bool:
        """Send the blocks so far."""
        del index, arrived
        leaving["hidden"] = args[0]
        blocks = kwargs["blocks"]
        if blocks is not None and blocks.raw is not None:
            leaving["blocks"], leaving["norms"] = blocks.raw, blocks.inv_rms
        return True


class FusedNorm(LayerCalls):
    """muse_spark: each layer applies the next one's first norm too, in one kernel with its own last addition.

    ``layer(x, mask=, cache=, attn_input=, next_norm=) -> x, attn_input``, where ``attn_input`` is x after the norm of
    the next layer. What the layer before a cut makes of that norm is not sent, as it does not own it.
    """

    def skip(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Pass both on."""
        del index, arrived
        return args[0], kwargs["attn_input"]

    def enter(self, index: int, args: Args, kwargs: Kwargs, arrived: State) -> Any:
        """Apply the norm of the first layer of the slice."""
        from mlx_lm.models.muse_spark import pre_norm

        del index, args
        norm = kwargs["next_norm"]
        return arrived["hidden"], pre_norm(arrived["hidden"], norm, dtype=norm.weight.dtype)
