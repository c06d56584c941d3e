"""What plugins for model families share: building mlx-lm's models, and loading one slice of their weights.

A family calls, on the compute thread:

- :func:`module_name` and :func:`packing_refusal`, to say whether it runs a checkpoint;
- :func:`build`, to make the model;
- :func:`load`, to fill what the executor left of it.

All of it imports MLX, so a plugin imports this package inside its methods.
"""

from runtime.weights.architecture import build, module_name
from runtime.weights.loading import load
from runtime.weights.packing import packing_refusal

__all__ = ["build", "load", "module_name", "packing_refusal"]
