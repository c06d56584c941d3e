"""The architectures that this family runs, each proved by a test against mlx-lm's own forward pass."""

from __future__ import annotations

DENSE_TYPES = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "glm4",
        "granite",
        "helium",
        "internlm2",
        "llama",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
"""Names of mlx-lm's model modules."""


def module_name(config: dict[str, object]) -> str:
    """Return the mlx-lm module for a configuration: several ``model_type``s share one (mistral is a llama)."""
    from mlx_lm.utils import MODEL_REMAPPING

    model_type = str(config["model_type"])
    return str(MODEL_REMAPPING.get(model_type, model_type))
