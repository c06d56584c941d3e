"""Tests of what computes. The BLAS must be there before MLX, as in a node."""

from pathlib import Path

import pytest

from runtime.inference.accelerator import prepare
from runtime.testing.models import tiny_llama

ACCELERATOR = prepare()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny dense model; nobody changes it."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that of one with sliding windows, and more layers."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "other", seed=7, sliding=8, layers=6)
