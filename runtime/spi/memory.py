"""How much memory a slice of a model needs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from runtime.spi.checkpoint import Checkpoint
from runtime.spi.family import LoadOptions
from runtime.spi.span import LayerSpan

WEIGHTS = "weights"
"""Name of the part that stronger quantization shrinks."""
KV_CACHE = "KV cache"
"""Name of the part that grows with context and sequences. A policy that refuses may say how much of it to give up."""


class Workload(msgspec.Struct, frozen=True):
    """What the slice will be asked to hold at once."""

    context: int
    """Tokens a sequence, prompt and completion together."""
    sequences: int
    """Sequences at once."""
    prefill_chunk: int
    """Prompt tokens in one forward pass."""


class Part(msgspec.Struct, frozen=True):
    """One named part of an estimate, in bytes."""

    name: str
    bytes: int


class MemoryEstimate(msgspec.Struct, frozen=True):
    """The parts, so that a refusal can show where the memory goes."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(part.bytes for part in self.parts)


class MemoryEstimator(ABC):
    """Pure arithmetic over a checkpoint's headers: nothing is loaded, nothing is guessed from a file's name."""

    @abstractmethod
    def estimate(
        self, checkpoint: Checkpoint, span: LayerSpan, workload: Workload, options: LoadOptions
    ) -> MemoryEstimate:
        """Return what ``span`` needs on one node, loaded as ``options`` say."""
