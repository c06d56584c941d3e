"""From a checkpoint to a shard in memory. Runs on the compute thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.errors import ModelUnsupported
from runtime.inference import installed
from runtime.inference.reclaim import reclaim, trimming
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, ModelFamily


def choose_family(families: Mapping[str, ModelFamily], checkpoint: Checkpoint) -> ModelFamily:
    """Return the first configured family that runs the model.

    Raises:
        ModelUnsupported: none does; with the reasons of those that know the architecture, or the nearest names of
            architectures if mlx-lm has none of that name.
    """
    from runtime.weights import module_name

    reasons = {}
    for name, family in families.items():
        reason = family.refusal(checkpoint)
        if reason is None:
            return family
        reasons[name] = reason
    module = module_name(checkpoint.config)
    knowing = {
        name: reason
        for name, reason in reasons.items()
        if module in families[name].modules() or module in families[name].refused_modules()
    }
    what = f"{checkpoint.model_type} ({checkpoint.path.name})"
    if not knowing and module not in installed.modules():
        nearest = installed.near(module, installed.model_types())
        hint = f"; the nearest it has: {', '.join(nearest)}" if nearest else ""
        raise ModelUnsupported(f"{what} does not run: mlx-lm {installed.version()} has no such model_type{hint}")
    why = "; ".join(f"{name}: {reason}" for name, reason in (knowing or reasons).items()) or "none is configured"
    raise ModelUnsupported(f"no model family runs {what}: {why}")


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
    shard = Shard(family.build(checkpoint.config, checkpoint.tensors), span, family.layer_calls(checkpoint.config))
    family.load(shard.model, checkpoint, span, options, trimming(progress))
    reclaim()
    return shard
