"""What is measured: a slice of a model, loaded in one way, under one load."""

from __future__ import annotations

import msgspec

from runtime.spi import LayerSpan, LoadOptions, Workload


class Case(msgspec.Struct, frozen=True):
    """One row of the table."""

    model: str
    """A name in :data:`benchmarks.memory.checkpoints.MODELS`."""
    start: int
    stop: int
    """Layers ``start`` up to and without ``stop``."""
    workload: Workload
    options: LoadOptions

    def span(self, layers: int) -> LayerSpan:
        """Return the slice, of a model with so many layers."""
        return LayerSpan(self.start, self.stop, layers)


class Order(msgspec.Struct, frozen=True):
    """A case and where its checkpoint is: what the process that is measured is told."""

    folder: str
    case: Case


class Measured(msgspec.Struct, frozen=True):
    """Resident bytes of a process."""

    idle: int
    """With MLX ready and no model."""
    loading: int
    """At most, while the slice was loaded."""
    loaded: int
    """With the slice loaded."""
    peak: int
    """At most, over all."""
    arrays: int
    """Bytes of MLX arrays at most; for comparison."""
