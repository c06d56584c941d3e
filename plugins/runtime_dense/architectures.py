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
