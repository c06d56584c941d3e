"""How the tensors of one slice get into a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.spi.checkpoint import Checkpoint, TensorInfo
from runtime.spi.layer_calls import LayerCalls
from runtime.spi.slices import slice_tensors
from runtime.spi.span import LayerSpan

if TYPE_CHECKING:
    from mlx import nn


class LoadOptions(msgspec.Struct, frozen=True):
    """How weights are kept once loaded. Every stage of a model uses the same."""

    dtype: str
    """MLX's name of the floating-point type to compute in: ``float32``, ``bfloat16`` or ``float16``."""
    dequantize: bool
    """Whether quantized weights are expanded to ``dtype`` at load (faster on a CPU, and larger)."""


class ModelFamily(ABC):
    """A group of architectures that load alike.

    The executor takes the model that :meth:`build` makes, turns the layers outside the slice into ghosts, and only
    then calls :meth:`load`: what ``model.parameters()`` names at that point is what the slice owns.
    All methods run on the compute thread and may block.
    """

    @abstractmethod
    def refusal(self, checkpoint: Checkpoint) -> str | None:
        """Say why this family does not run the model, or None if it does. Nothing is imported for an unknown type."""

    def tensors(self, checkpoint: Checkpoint, span: LayerSpan) -> frozenset[str]:
        """Name the tensors that :meth:`load` reads for a slice, in the checkpoint's own names.

        A node fetches these and no others. This decides by the names, as most architectures spell them; a family whose
        slices read more than that, or much less, says so itself. What is not fetched is
        :attr:`~runtime.spi.Checkpoint.absent` when :meth:`load` is called.
        """
        return slice_tensors(checkpoint, span)

    @abstractmethod
    def build(self, config: dict[str, Any], tensors: Mapping[str, TensorInfo] | None = None) -> nn.Module:
        """Make the whole module tree from ``config.json``, lazily: no weight is allocated.

        ``tensors`` are all that the checkpoint has, where there is one: some architectures find out from them whether
        their head is the embedding.
        """

    @abstractmethod
    def load(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        span: LayerSpan,
        options: LoadOptions,
        progress: Callable[[int, int], None],
    ) -> None:
        """Load exactly the tensors that the model owns, strictly, and evaluate them.

        Tensors that are :attr:`~runtime.spi.Checkpoint.absent` are never read: their bytes would be zeros.
        ``progress`` is called with the bytes evaluated so far and the bytes in all.

        Raises:
            CheckpointCorrupt: a tensor is missing, has the wrong shape, or cannot be read.
        """

    def layer_calls(self, config: dict[str, Any]) -> LayerCalls:
        """Say how the model of a configuration calls its layers, and so what crosses a cut."""
        del config
        return LayerCalls()

    def modules(self) -> Mapping[str, str]:
        """Return the modules of ``mlx_lm.models`` that this family runs, each with how: for people to read."""
        return {}

    def refused_modules(self) -> Mapping[str, str]:
        """Return the modules of ``mlx_lm.models`` that this family knows and does not run, each with the reason."""
        return {}
