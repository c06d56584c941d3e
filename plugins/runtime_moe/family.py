"""The family ``moe``, which imports MLX only when it is asked to build a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily, TensorInfo
from runtime_moe.architectures import MOE_MODULES

if TYPE_CHECKING:
    from mlx import nn


class MoeFamily(ModelFamily):
    """mlx-lm's text models with experts."""

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        """Say why the model is not one of :data:`~runtime_moe.architectures.MOE_MODULES`, or cannot be read."""
        from runtime.weights import module_name, packing_refusal

        if checkpoint.config.get("model_file"):
            return "it wants to run code of its own (model_file), which is never done"
        module = module_name(checkpoint.config)
        if module not in MOE_MODULES:
            return f"the moe family does not run {checkpoint.model_type}"
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

    def modules(self) -> Mapping[str, str]:
        """Return the architectures."""
        return dict.fromkeys(MOE_MODULES, "as it is")
