"""What was measured of this machine, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from loguru import logger

from runtime.inference.accelerator import prepare
from runtime.spi import Checkpoint, LayerSeconds, LoadOptions

if TYPE_CHECKING:
    from runtime.spi import ModelFamily


class Probes:
    """Measures each model once for each way to load it. Runs on the compute thread."""

    def __init__(self, families: Mapping[str, ModelFamily], folder: Path) -> None:
        """Keep files in ``folder``, which nodes of this machine may share; it is made when it is needed."""
        self._families = families
        self._folder = folder

    def seconds(
        self, config: dict[str, Any], options: LoadOptions, got_on: Callable[[], None] = lambda: None
    ) -> LayerSeconds:
        """Return what was measured for a model's configuration, measuring it if it never was.

        ``got_on`` is called now and then while it is measured.

        Raises:
            ModelUnsupported: it cannot be measured; see :func:`runtime.inference.probe.probe`.
        """
        file = self._folder / f"{_fingerprint(config, options)}.json"
        known = _read(file)
        if known is None:
            from runtime.inference.probe import probe

            checkpoint = Checkpoint(Path(str(config.get("model_type"))), config, {})
            known = probe(self._families, checkpoint, options, got_on)
            _write(file, known)
        return known


def _fingerprint(config: dict[str, Any], options: LoadOptions) -> str:
    """Return a name for what a measurement depends on: the model, how it is loaded, the machine, and what computes."""
    accelerator = prepare()  # before MLX is imported
    import mlx.core as mx
    import mlx_lm

    threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    parts = [
        config,
        msgspec.to_builtins(options),
        platform.node(),
        accelerator.device,
        accelerator.blas.name,
        mx.__version__,
        mlx_lm.__version__,
        threads,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path) -> LayerSeconds | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=LayerSeconds)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("{} cannot be read and is measured again: {}", file, error)
        return None


def _write(file: Path, seconds: LayerSeconds) -> None:
    """Keep a measurement; without a place to keep it, it is made again another time."""
    aside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(msgspec.json.encode(seconds))
        aside.replace(file)
    except OSError as error:
        logger.warning("what was measured is not kept: {}", error)
