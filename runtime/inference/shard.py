"""Running some layers of a model through the model's own forward pass.

mlx-lm has over a hundred architectures, each with a ``__call__`` of its own: masks taken from ``cache[0]``, layers
that alternate by index, scaled embeddings, capped logits. Rewriting those would go wrong; so the model stays whole
and the layers of other stages become *ghosts*:

- A ghost passes its input on and answers reads of attributes from the layer it stands for, so that code which asks
  a layer what it is still gets the answer. It owns no parameters.
- After the first stage, the model is called with token ids that nobody evaluates; the last ghost before the slice
  drops what comes and returns the hidden state that was received.
- The ghost after the slice raises :class:`_Boundary` with the hidden state, so that no later code runs.
- Every layer keeps its entry in the cache that the model itself makes. Entries of ghosts advance with the sequence,
  because masks and offsets may be read from them, but hold no keys or values to speak of.

MLX is lazy: what is never evaluated is never allocated.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache

from runtime.errors import ModelUnsupported
from runtime.spi import LayerSpan


class _Boundary(Exception):
    """Carries the hidden state out of a model after the last layer of the slice."""

    def __init__(self, hidden: mx.array) -> None:
        super().__init__()
        self.hidden = hidden


class _Ghost(nn.Module):  # type: ignore[misc]  # mlx ships no annotations for nn.Module
    """Stands for a layer, or another part, that a different stage owns."""

    def __init__(self, stands_for: nn.Module) -> None:
        super().__init__()
        # nn.Module keeps modules as parameters of their parent; this one must not be.
        object.__setattr__(self, "_stands_for", stands_for)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_stands_for"), name)

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return x


class _Entry(_Ghost):
    """The ghost just before the slice: it returns what the stage before sent."""

    def __init__(self, stands_for: nn.Module) -> None:
        super().__init__(stands_for)
        object.__setattr__(self, "received", None)

    def receive(self, hidden: mx.array | None) -> None:
        """Set the hidden state that the next forward pass starts from."""
        object.__setattr__(self, "received", hidden)

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        del x
        return object.__getattribute__(self, "received")


class _Exit(_Ghost):
    """The ghost just after the slice: it ends the forward pass."""

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        raise _Boundary(x)


class _SilentEmbedding(_Ghost):
    """Stands for an embedding whose output nobody evaluates: only the shape is right."""

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        width = object.__getattribute__(self, "_stands_for").weight.shape[-1]
        return mx.zeros((*x.shape, width))


class Shard:
    """Layers ``span`` of a model, with the embedding if they are the first and the head if they are the last."""

    def __init__(self, model: nn.Module, span: LayerSpan) -> None:
        """Turn what ``span`` does not own into ghosts. Afterwards ``model.parameters()`` names what the slice owns.

        Raises:
            ModelUnsupported: the model does not keep its layers in one list of the right length.
        """
        self.model = model
        self.span = span
        self._entry: _Entry | None = None
        layers, owner = _layer_list(model, span)
        _hide_endpoints(model, owner, span)
        for index, layer in enumerate(layers):
            if index in span:
                continue
            if index == span.start - 1:
                layers[index] = self._entry = _Entry(layer)
            elif index == span.stop:
                layers[index] = _Exit(layer)
            else:
                layers[index] = _Ghost(layer)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that the slice owns."""
        return sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))

    def new_cache(self) -> list[Any]:
        """Make the model's own cache for one sequence. Ghosts of one kind share an entry, as they move in step."""
        caches: list[Any] = make_prompt_cache(self.model)
        shared: dict[Any, Any] = {}
        return [
            entry if index in self.span else shared.setdefault(_kind(entry), entry)
            for index, entry in enumerate(caches)
        ]

    def forward(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        """Run the slice over the next positions of a sequence, lazily.

        Args:
            inputs: on the first stage token ids (batch, length), else hidden states (batch, length, hidden).
            cache: as :meth:`new_cache` made it; it advances by ``length``.

        Returns:
            Hidden states (batch, length, hidden), or on the last stage logits (batch, length, vocabulary).
        """
        tokens = inputs
        if self._entry is not None:
            self._entry.receive(inputs)
            tokens = mx.zeros(inputs.shape[:2], dtype=mx.int32)
        try:
            output: mx.array = self.model(tokens, cache=cache)
        except _Boundary as boundary:
            output = boundary.hidden
        finally:
            if self._entry is not None:
                self._entry.receive(None)
        self._advance_ghosts(cache, inputs.shape[0], inputs.shape[1])
        return output

    def state(self, cache: list[Any]) -> list[Any]:
        """Return the arrays of a cache that a forward pass changes; evaluating them runs the pass without its head."""
        return [entry.state for entry in _unique(cache) if not _is_bare(entry)]

    def ghost_state(self, cache: list[Any]) -> list[Any]:
        """Return the arrays that ghosts keep; nothing else evaluates them, so their graph would grow with each step."""
        return [entry.state for entry in self._ghost_entries(cache) if not _is_bare(entry)]

    def _ghost_entries(self, cache: list[Any]) -> list[Any]:
        return _unique([entry for index, entry in enumerate(cache) if index not in self.span])

    def _advance_ghosts(self, cache: list[Any], batch: int, length: int) -> None:
        for entry in self._ghost_entries(cache):
            if type(entry) is KVCache:
                # Its masks come from the offset alone, so it need not hold anything.
                entry.offset += length
            else:
                blank = mx.zeros((batch, 1, length, 1))
                entry.update_and_fetch(blank, blank)


def _layer_list(model: nn.Module, span: LayerSpan) -> tuple[list[nn.Module], nn.Module]:
    """Return the list that the model iterates over, and the module that holds it.

    ``model.layers`` may be a copy of that list, so it is found by what is in it.
    """
    layers = list(getattr(model, "layers", None) or ())
    if len(layers) == span.total:
        for module in model.modules():
            for value in module.values():
                if isinstance(value, list) and len(value) == span.total and value[0] is layers[0]:
                    return value, module
    raise ModelUnsupported(
        f"{type(model).__module__} does not keep its {span.total} layers in one list, so it cannot be cut here"
    )


def _hide_endpoints(model: nn.Module, owner: nn.Module, span: LayerSpan) -> None:
    """Hide the embedding and the head where another stage owns them.

    The input side is the embeddings beside the layers, the output side all else outside them. A model with tied
    weights, by its own word or because it has no linear head, uses its embedding as one: its last stage keeps it.
    """
    inputs = [(owner, name, child) for name, child in owner.children().items() if isinstance(child, nn.Embedding)]
    outputs = [
        (parent, name, child)
        for parent in _ancestors(model, owner)
        for name, child in parent.children().items()
        if isinstance(child, nn.Module) and not isinstance(child, nn.Embedding) and not _holds(child, owner)
    ]
    has_head = any(isinstance(child, nn.Linear) for _, _, child in outputs)
    tied = not has_head or bool(getattr(getattr(model, "args", None), "tie_word_embeddings", False))
    if not span.is_first and not (span.is_last and tied):
        for parent, name, child in inputs:
            parent[name] = _SilentEmbedding(child)
    if not span.is_last:
        for parent, name, child in outputs:
            parent[name] = _Ghost(child)


def _ancestors(model: nn.Module, owner: nn.Module) -> list[nn.Module]:
    """Return the modules on the way from the model to the owner of the layers, both included."""
    return [module for module in model.modules() if _holds(module, owner)]


def _holds(module: nn.Module, wanted: nn.Module) -> bool:
    return any(part is wanted for part in module.modules())


def _kind(entry: Any) -> Any:
    """Return what makes two fresh cache entries interchangeable: their class and settings."""
    settings = sorted(
        (name, value) for name, value in vars(entry).items() if isinstance(value, (int, float, str, bool))
    )
    return type(entry), tuple(settings)


def _unique(entries: list[Any]) -> list[Any]:
    return list({id(entry): entry for entry in entries}.values())


def _is_bare(entry: Any) -> bool:
    """Whether a ghost's entry holds no arrays, only an offset."""
    return type(entry) is KVCache and entry.keys is None
