"""Stand-ins for the parts of a model that other stages own.

A stand-in owns no parameters, and answers reads of attributes from the part it stands for, so that code which asks a
layer what it is still gets the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from runtime.spi import LayerCalls

State = dict[str, mx.array]
"""What travels from one stage to the next: arrays by name, ``hidden`` among them."""


class Boundary(Exception):
    """Ends a forward pass after the last layer of the slice."""


class Passage:
    """What came in with the pass that is running, and what goes out with it."""

    def __init__(self) -> None:
        self.arrived: State = {}
        self.leaving: State = {}
        self.launches = False
        """Whether each layer is launched while the graph of the next is built."""


class Ghost(nn.Module):  # type: ignore[misc]  # mlx ships no annotations for nn.Module
    """Stands for a part that does not run here; what it is called with passes through."""

    def __init__(self, stands_for: nn.Module) -> None:
        super().__init__()
        # nn.Module keeps modules as parameters of their parent; this one must not be.
        object.__setattr__(self, "_stands_for", stands_for)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_stands_for"), name)

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return x


class LayerGhost(Ghost):
    """Stands for a layer outside the slice."""

    def __init__(self, stands_for: nn.Module, index: int, calls: LayerCalls, passage: Passage) -> None:
        super().__init__(stands_for)
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_calls", calls)
        object.__setattr__(self, "_passage", passage)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do nothing."""
        return self._calls.skip(self._index, args, kwargs, self._passage.arrived)


class EntryGhost(LayerGhost):
    """The layer just before the slice: it returns what the stage before sent."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what arrived."""
        return self._calls.enter(self._index, args, kwargs, self._passage.arrived)


class ExitGhost(LayerGhost):
    """A layer after the slice: it notes what must travel, and ends the forward pass when that is all."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take note.

        Raises:
            Boundary: there is nothing left to note.
        """
        if self._calls.leave(self._index, args, kwargs, self._passage.arrived, self._passage.leaving):
            raise Boundary
        return self._calls.skip(self._index, args, kwargs, self._passage.arrived)


class SilentPart(Ghost):
    """Stands for a part that runs before the first layer; nobody evaluates its output, only shape and type count."""

    def __init__(self, stands_for: nn.Module, passage: Passage) -> None:
        super().__init__(stands_for)
        object.__setattr__(self, "_passage", passage)

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        """Return zeros for an embedding; else run the part, lazily, over what is not evaluated either."""
        stands_for = object.__getattribute__(self, "_stands_for")
        if isinstance(stands_for, nn.Embedding):
            return mx.zeros((*x.shape, stands_for.weight.shape[-1]), dtype=self._passage.arrived["hidden"].dtype)
        return stands_for(x, *args, **kwargs)


def adapted(layer: nn.Module, index: int, calls: LayerCalls, passage: Passage) -> None:
    """Make a layer of the slice ask ``calls`` for its arguments whenever it is called."""
    kind = type(layer)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = calls.adapt(index, args, kwargs, passage.arrived)
        return kind.__call__(self, *args, **kwargs)

    _become(layer, call)


def launching(layer: nn.Module, passage: Passage) -> None:
    """Make a layer of the slice launch what it returns, and so all before it, in passes that want it."""
    kind = type(layer)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        if passage.launches:
            mx.async_eval(output)
        return output

    _become(layer, call)


def _become(layer: nn.Module, call: Callable[..., Any]) -> None:
    """Make a layer an instance of a subclass of its class: a wrapper would change the names of its parameters."""
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
