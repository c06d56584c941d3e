"""What the executor must know of a model to cut it between two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx


class LayerCalls:
    """How a model's forward pass calls its layers, and what must travel where the pass is cut.

    This one is right for nearly every architecture: a layer takes the hidden state first and returns it. A family
    whose layers hand on more subclasses it. All arguments and results are as the model's own code passes them;
    ``index`` is the layer's number in the whole model.

    The state that travels is arrays by name. ``hidden`` is always there, with the shape (batch, length, ...).
    """

    adapts = False
    """Whether :meth:`adapt` is to be asked before every layer of a slice runs."""

    def skip(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], arrived: Mapping[str, mx.array]) -> Any:
        """Return what layer ``index``, which runs on an earlier stage or not at all, would return if it did nothing.

        ``arrived`` is the state that the stage before sent; it is empty on the first stage.
        """
        del index, arrived
        return first_argument(args, kwargs)

    def enter(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], arrived: Mapping[str, mx.array]) -> Any:
        """Return what layer ``index``, the last one before the slice, returned on the stage that ran it."""
        del index, args, kwargs
        return arrived["hidden"]

    def adapt(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], arrived: Mapping[str, mx.array]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that layer ``index`` of the slice is to run with. ``arrived`` is empty on the first."""
        del index, arrived
        return args, kwargs

    def leave(
        self,
        index: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arrived: Mapping[str, mx.array],
        leaving: dict[str, mx.array],
    ) -> bool:
        """Put what must travel into ``leaving``; asked when layer ``index``, which is after the slice, is called.

        Returns:
            Whether that is all. If not, the pass goes on and the next layer's call is asked too.
        """
        del index, arrived
        leaving["hidden"] = first_argument(args, kwargs)
        return True

    def reads_keys(self, boundary: int) -> frozenset[int]:
        """Return the layers before ``boundary`` whose keys and values some layer from ``boundary`` on reads.

        Those of each step travel as ``keys.<layer>`` and ``values.<layer>``, (batch, heads, length, size).
        """
        del boundary
        return frozenset()

    def keeps_cache(self, start: int) -> frozenset[int]:
        """Return the layers before ``start`` whose cache a slice from ``start`` on keeps for itself."""
        return self.reads_keys(start)

    def advance(self, entry: Any, batch: int, length: int) -> bool:
        """Move the cache entry of a layer outside the slice on by ``length`` tokens, if it is of a kind of its own.

        Returns:
            Whether that is done; if not, the entry is one of mlx-lm's and the executor knows how.
        """
        del entry, batch, length
        return False


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a call passes first, with or without its name."""
    return args[0] if args else next(iter(kwargs.values()))
