"""Running some layers of a model through the model's own forward pass.

mlx-lm has over a hundred architectures, each with a ``__call__`` of its own: masks taken from ``cache[0]``, layers
that alternate by index, scaled embeddings, capped logits. Rewriting those would go wrong; so the model stays whole
and the layers of other stages become *ghosts* (:mod:`runtime.inference.ghosts`):

- A ghost passes its input on and answers reads of attributes from the layer it stands for. It owns no parameters.
- After the first stage, the model is called with token ids that nobody evaluates; the last ghost before the slice
  drops what comes and returns what was received.
- The ghost after the slice raises :class:`~runtime.inference.ghosts.Boundary`, so that no later code runs.
- Every layer keeps its entry in the cache that the model itself makes. Entries of ghosts advance with the sequence,
  because masks and offsets may be read from them, but hold no keys or values to speak of.

Where layers hand on more than one array, the family says what must travel: :class:`runtime.spi.LayerCalls`.

MLX is lazy: what is never evaluated is never allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from runtime.errors import ModelUnsupported
from runtime.inference.anatomy import Anatomy, dissect
from runtime.inference.caches import advance, arrays, batched, kind, trims, unique
from runtime.inference.ghosts import (
    Boundary,
    EntryGhost,
    ExitGhost,
    Ghost,
    LayerGhost,
    Passage,
    SilentPart,
    State,
    adapted,
    launching,
)
from runtime.spi import LayerCalls, LayerSpan


class Shard:
    """Layers ``span`` of a model, with the embedding if they are the first and the head if they are the last."""

    def __init__(self, model: nn.Module, span: LayerSpan, calls: LayerCalls | None = None) -> None:
        """Turn what ``span`` does not own into ghosts. Afterwards ``model.parameters()`` names what the slice owns.

        Args:
            model: with all its layers, lazy, as the family built it.
            span: the slice.
            calls: how the model calls its layers; the family says.

        Raises:
            ModelUnsupported: the model does not run its layers one after the other, once each.
        """
        self.model = model
        self.span = span
        self._calls = calls or LayerCalls()
        self._passage = Passage()
        anatomy = dissect(model, span.total, self._calls)
        self._entries = anatomy.entries
        """For each cache entry, the layers that take it."""
        self._live = _live_entries(anatomy, span)
        """Cache entries that layers of the slice take."""
        self._own = self._live | self._taken_by(self._calls.keeps_cache(span.start))
        """Those, and the copies of earlier layers' entries that the slice keeps."""
        self._idle = (
            frozenset(range(len(self._entries))) - self._live - self._taken_by(self._calls.reads_keys(span.start))
        )
        """Cache entries that nothing is put into; they are only moved on."""
        self._read_later = self._calls.reads_keys(span.stop) if not span.is_last else frozenset()
        """Layers whose keys a later stage reads."""
        self._hide_ends(anatomy)
        self._hide_layers(anatomy)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that the slice owns."""
        return sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))

    def new_cache(self, left_padding: Sequence[int] | None = None) -> list[Any]:
        """Make the model's own cache. Ghosts of one kind share an entry, as they move in step.

        Args:
            left_padding: for a batch of sequences of different lengths, how many positions before each are padding;
                None is for one sequence.

        Raises:
            ModelUnsupported: the model's cache takes one sequence at a time, and a batch is wanted.
        """
        entries: list[Any] = make_prompt_cache(self.model)
        if left_padding is not None:
            entries = [batched(entry, left_padding) for entry in entries]
        shared: dict[Any, Any] = {}
        return [
            entry if index in self._own else shared.setdefault(kind(entry), entry)
            for index, entry in enumerate(entries)
        ]

    @property
    def trims(self) -> bool:
        """Whether the caches of these layers can be cut to any shorter length."""
        return trims([entry for index, entry in enumerate(make_prompt_cache(self.model)) if index in self._own])

    def forward(self, inputs: mx.array | State, cache: list[Any], *, launch: bool = False) -> mx.array | State:
        """Run the slice over the next positions of a sequence, lazily.

        Args:
            inputs: on the first stage token ids (batch, length), else what the stage before returned.
            cache: as :meth:`new_cache` made it; it advances by ``length``.
            launch: whether to let each layer be computed while the graph of the next is built: for a device that is
                idle.

        Returns:
            On the last stage logits (batch, length, vocabulary), else what the next stage needs: arrays by name,
            of which ``hidden`` is (batch, length, ...).

        Raises:
            ModelUnsupported: the family's calls never say what must travel.
        """
        passage = self._passage
        if isinstance(inputs, dict):
            passage.arrived = inputs
            batch, length = inputs["hidden"].shape[:2]
            tokens = mx.zeros((batch, length), dtype=mx.int32)
        else:
            tokens = inputs
            batch, length = tokens.shape
        output: mx.array | State
        passage.launches = launch
        try:
            with self._keys_noted(cache):
                output = self.model(tokens, cache=cache)
            if not self.span.is_last:
                raise ModelUnsupported(
                    f"layers {self.span} ran on to the end: {type(self._calls).__name__} never says what must travel"
                )
        except Boundary:
            output = passage.leaving
        finally:
            passage.arrived, passage.leaving = {}, {}
        for entry in unique(cache[index] for index in self._idle):
            if not self._calls.advance(entry, batch, length):
                advance(entry, batch, length)
        return output

    def state(self, cache: list[Any]) -> list[mx.array]:
        """Return the arrays of a cache that a forward pass changes; evaluating them runs the pass without its head."""
        return arrays(cache)

    def ghost_state(self, cache: list[Any]) -> list[mx.array]:
        """Return the arrays that no layer here reads; nothing else evaluates them, so their graph would grow."""
        return arrays(entry for index, entry in enumerate(cache) if index not in self._live)

    def _taken_by(self, layers: frozenset[int]) -> frozenset[int]:
        """Return the cache entries that any of some layers take."""
        return frozenset(index for index, takers in enumerate(self._entries) if not takers.isdisjoint(layers))

    @contextmanager
    def _keys_noted(self, cache: list[Any]) -> Iterator[None]:
        """Note the keys and values of this pass that a later stage reads, as they go into the cache."""
        passage = self._passage
        for layer in self._read_later:
            for part in ("keys", "values"):
                if f"{part}.{layer}" in passage.arrived:
                    passage.leaving[f"{part}.{layer}"] = passage.arrived[f"{part}.{layer}"]
        noted = [
            (layer, cache[index])
            for index, takers in enumerate(self._entries)
            for layer in self._read_later & takers
            if layer in self.span
        ]
        for layer, entry in noted:
            entry.update_and_fetch = _noting(entry.update_and_fetch, layer, passage.leaving)
        try:
            yield
        finally:
            for _, entry in noted:
                del entry.update_and_fetch

    def _hide_layers(self, anatomy: Anatomy) -> None:
        for index, place in enumerate(anatomy.layers):
            if index in self.span:
                if self._calls.adapts and not self.span.is_first:
                    adapted(place.module, index, self._calls, self._passage)
                launching(place.module, self._passage)
                continue
            ghost = LayerGhost
            if index == self.span.start - 1:
                ghost = EntryGhost
            elif index >= self.span.stop:
                ghost = ExitGhost
            place.holder[place.key] = ghost(place.module, index, self._calls, self._passage)

    def _hide_ends(self, anatomy: Anatomy) -> None:
        """Hide the parts around the layers where other stages own them. What serves both ends, both ends keep."""
        span = self.span
        inputs = () if span.is_first else anatomy.before
        ends = () if span.is_first or span.is_last else anatomy.both
        for place in (*inputs, *ends):
            place.holder[place.key] = SilentPart(place.module, self._passage)
        if not span.is_last:
            for place in anatomy.after:
                place.holder[place.key] = Ghost(place.module)
            for place in anatomy.loose:
                del place.holder[place.key]


def _live_entries(anatomy: Anatomy, span: LayerSpan) -> frozenset[int]:
    """Return the cache entries that are written here; what no layer takes is of the parts before them."""
    return frozenset(
        index
        for index, takers in enumerate(anatomy.entries)
        if (any(layer in span for layer in takers) if takers else span.is_first)
    )


def _noting(update: Any, layer: int, leaving: State) -> Any:
    def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
        leaving[f"keys.{layer}"], leaving[f"values.{layer}"] = keys, values
        return update(keys, values)

    return update_and_fetch
