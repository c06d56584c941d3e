"""The family ``dense``, which imports MLX only when it is asked to build a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily
from runtime_dense.architectures import DENSE_TYPES, module_name

if TYPE_CHECKING:
    from mlx import nn


class DenseFamily(ModelFamily):
    """mlx-lm's dense text models."""

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        """Say why the model is not one of :data:`~runtime_dense.architectures.DENSE_TYPES`."""
        if checkpoint.config.get("model_file"):
            return "it wants to run code of its own (model_file), which is never done"
        method = (checkpoint.config.get("quantization_config") or {}).get("quant_method")
        if method is not None and checkpoint.quantization is None:
            return f"its weights are packed by {method}; convert it with mlx_lm.convert first"
        name = module_name(checkpoint.config)
        if name not in DENSE_TYPES:
            return f"the dense family runs {', '.join(sorted(DENSE_TYPES))}, and not {checkpoint.model_type}"
        return None

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make mlx-lm's model for the configuration."""
        from runtime_dense.loading import build

        return build(config)

    def load(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        span: LayerSpan,
        options: LoadOptions,
        progress: Callable[[int, int], None],
    ) -> None:
        """Load what the model owns; see :class:`~runtime.spi.ModelFamily`."""
        from runtime_dense.loading import load

        load(model, checkpoint, span, options, progress)
