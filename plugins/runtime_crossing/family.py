"""The family ``crossing``, which imports MLX only when it is asked to build a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.spi import Checkpoint, LayerCalls, LayerSpan, LoadOptions, ModelFamily, TensorInfo
from runtime_crossing.architectures import CROSSING_MODULES

if TYPE_CHECKING:
    from mlx import nn


class CrossingFamily(ModelFamily):
    """mlx-lm's text models whose layers hand on more than the hidden state."""

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        """Say why the model is not one of :data:`~runtime_crossing.architectures.CROSSING_MODULES`, or unreadable."""
        from runtime.weights import module_name, packing_refusal

        if checkpoint.config.get("model_file"):
            return "it wants to run code of its own (model_file), which is never done"
        module = module_name(checkpoint.config)
        if module not in CROSSING_MODULES:
            return f"the crossing family does not run {checkpoint.model_type}"
        return packing_refusal(checkpoint, module)

    def build(self, config: dict[str, Any], tensors: Mapping[str, TensorInfo] | None = None) -> nn.Module:
        """Make mlx-lm's model for the configuration."""
        from runtime.weights import build

        return build(config, tensors)

    def load(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        span: LayerSpan,
        options: LoadOptions,
        progress: Callable[[int, int], None],
    ) -> None:
        """Load what the model owns; see :class:`~runtime.spi.ModelFamily`."""
        from runtime.weights import load

        load(model, checkpoint, span, options, progress)

    def layer_calls(self, config: dict[str, Any]) -> LayerCalls:
        """Say what crosses a cut of the model; :meth:`refusal` has passed it."""
        from runtime.weights import module_name

        return CROSSING_MODULES[module_name(config)].calls(config)

    def modules(self) -> Mapping[str, str]:
        """Return the architectures with what crosses a cut of each."""
        return {name: crossing.what for name, crossing in CROSSING_MODULES.items()}
