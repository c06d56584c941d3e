"""The family ``dense``, which imports MLX only when it is asked to build a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily, TensorInfo
from runtime_dense.architectures import DENSE_MODULES, NEEDS_METAL, REFUSED_MODULES

if TYPE_CHECKING:
    from mlx import nn

PHI3_SMALL_VOCABULARY = 100_352
"""mlx-lm 0.32 blanks out fixed token ids up to here, and so writes over other memory where there are fewer."""


class DenseFamily(ModelFamily):
    """mlx-lm's dense text models."""

    def refusal(self, checkpoint: Checkpoint) -> str | None:
        """Say why the model is not one of :data:`~runtime_dense.architectures.DENSE_MODULES`, or cannot be read."""
        from runtime.weights import module_name, packing_refusal

        if checkpoint.config.get("model_file"):
            return "it wants to run code of its own (model_file), which is never done"
        name = module_name(checkpoint.config)
        if name in REFUSED_MODULES:
            return REFUSED_MODULES[name]
        if name not in DENSE_MODULES:
            return f"the dense family does not run {checkpoint.model_type}"
        vocabulary = checkpoint.text_config.get("vocab_size")
        if name == "phi3small" and not (isinstance(vocabulary, int) and vocabulary >= PHI3_SMALL_VOCABULARY):
            return f"its vocab_size is {vocabulary}, and mlx-lm writes to the logits of {PHI3_SMALL_VOCABULARY} tokens"
        return packing_refusal(checkpoint, name)

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
        return {name: "on Metal only" if name in NEEDS_METAL else "as it is" for name in DENSE_MODULES}

    def refused_modules(self) -> Mapping[str, str]:
        """Return those that no family runs."""
        return REFUSED_MODULES
