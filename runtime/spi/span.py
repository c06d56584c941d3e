"""A contiguous run of a model's layers."""

from __future__ import annotations

import msgspec


class LayerSpan(msgspec.Struct, frozen=True, order=True):
    """Layers ``start`` to ``stop - 1`` of a model that has ``total`` layers, numbered from zero.

    Layers keep the model's own numbers: a slice is never renumbered, because many architectures choose what a
    layer is by its index.
    """

    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.total:
            raise ValueError(f"layers {self.start}..{self.stop} are not a slice of a model of {self.total} layers")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1} of {self.total}"

    @property
    def is_first(self) -> bool:
        """Whether this slice starts at the embedding."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this slice ends with the final norm and the output head."""
        return self.stop == self.total

    @classmethod
    def whole(cls, total: int) -> LayerSpan:
        """Every layer of a model."""
        return cls(0, total, total)
