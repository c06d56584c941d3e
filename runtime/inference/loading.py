"""From a checkpoint to a shard in memory. Runs on the compute thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.errors import ModelUnsupported
from runtime.inference.reclaim import reclaim, trimming
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily


def choose_family(families: Mapping[str, ModelFamily], checkpoint: Checkpoint) -> ModelFamily:
    """Return the first configured family that runs the model.

    Raises:
        ModelUnsupported: with the reason of each.
    """
    reasons = []
    for name, family in families.items():
        reason = family.refusal(checkpoint)
        if reason is None:
            return family
        reasons.append(f"{name}: {reason}")
    why = "; ".join(reasons) or "none is configured"
    raise ModelUnsupported(f"no model family runs {checkpoint.model_type} ({checkpoint.path.name}): {why}")


def load_shard(
    families: Mapping[str, ModelFamily],
    checkpoint: Checkpoint,
    span: LayerSpan,
    options: LoadOptions,
    progress: Callable[[int, int], None],
) -> Shard:
    """Build the model, make ghosts of what the span does not own, and load the rest.

    Raises:
        ModelUnsupported: no family runs it, or it cannot be cut.
        CheckpointCorrupt: its tensors are not what its configuration says.
    """
    family = choose_family(families, checkpoint)
    shard = Shard(family.build(checkpoint.config, checkpoint.tensors), span)
    family.load(shard.model, checkpoint, span, options, trimming(progress))
    reclaim()
    return shard
