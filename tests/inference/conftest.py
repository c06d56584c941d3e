"""Tests of what computes. The BLAS must be there before MLX, as in a node."""

from runtime.inference.accelerator import prepare

ACCELERATOR = prepare()
