"""What is measured: a slice of a model, loaded in one way, under one load."""

from __future__ import annotations

import msgspec

from runtime.spi import LayerSpan, LoadOptions, MemoryEstimate, Part, Workload


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


class Row(msgspec.Struct, frozen=True):
    """A case, what was estimated for it and what it took."""

    case: Case
    how: str
    """``float32`` as the weights are, or packed weights ``expanded`` to that, or left ``packed``."""
    parts: tuple[Part, ...]
    estimated: int
    measured: int
    """Resident bytes at most, over those of an idle node."""
    arrays: int
    """Bytes of MLX arrays at most."""
    peak: int
    """Resident bytes of the whole process at most."""
    met: bool
    """Whether the error is at most 5 % of what was measured, or 50 MB."""

    @classmethod
    def of(cls, case: Case, how: str, estimate: MemoryEstimate, measured: Measured) -> Row:
        """Compare."""
        taken = measured.peak - measured.idle
        error = abs(estimate.total - taken)
        met = error <= max(0.05 * taken, 50_000_000)
        return cls(case, how, estimate.parts, estimate.total, taken, measured.arrays, measured.peak, met)

    @staticmethod
    def heading() -> str:
        """The first two lines of a table in Markdown."""
        cells = ["Model", "Layers", "Weights", "Context", "Sequences", "Chunk", "Estimate", "Measured", "Error", ""]
        return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"

    def line(self) -> str:
        """The row in Markdown. Sizes are in MB of a million bytes."""
        case, workload = self.case, self.case.workload
        error = self.estimated - self.measured
        cells = [
            case.model,
            f"{case.start}-{case.stop - 1}",
            self.how,
            str(workload.context),
            str(workload.sequences),
            str(workload.prefill_chunk),
            f"{self.estimated / 1e6:.0f}",
            f"{self.measured / 1e6:.0f}",
            f"{error / 1e6:+.0f} ({error / self.measured:+.1%})",
            "" if self.met else "NOT MET",
        ]
        return f"| {' | '.join(cells)} |"
