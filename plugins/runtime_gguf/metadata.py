"""Typed access to the metadata that describes a model's architecture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.reader import GgufHeader


class Metadata:
    """The keys of a file's own architecture: ``number("block_count")`` reads ``qwen3.block_count``.

    All methods raise :class:`~runtime.errors.CheckpointCorrupt` where a key is missing or of the wrong type.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.path: Path = header.path
        self.header = header
        self._prefix = ""
        self._read: set[str] = set()
        self.architecture = self.text("general.architecture")
        self._prefix = self.architecture + "."

    def has_tensor(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self.header.tensors

    def unread(self) -> dict[str, object]:
        """Return the architecture's keys that nobody has asked for, without those that are zero or off."""
        return {
            key: value
            for key, value in self.header.metadata.items()
            if key.startswith(self._prefix) and key not in self._read and value not in (0, False, "")
        }

    def ignore(self, *keys: str) -> None:
        """Say that keys are understood, and make no difference."""
        self._read.update(self._prefix + key for key in keys)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """Return a whole number, which may be given once, or once for each layer where all agree.

        Raises:
            ModelUnsupported: layers differ.
        """
        value = self._get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise ModelUnsupported(f"{self.path} gives each layer its own {self._prefix}{key}, which is not converted")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def numbers(self, key: str, layers: int) -> tuple[int, ...]:
        """Return a whole number for each of so many layers, from zero on, given as a list or once for all."""
        value = self._get(key, None)
        # A claim of a billion layers must not be spelt out.
        numbers = value if isinstance(value, list) else [value] * min(layers, len(self.header.tensors))
        if len(numbers) < layers or not all(type(number) is int and number >= 0 for number in numbers):
            raise self._wrong(key, value, "a whole number for each layer")
        return tuple(numbers[:layers])

    def positive(self, key: str, default: int | None = None) -> int:
        """Return a whole number above zero."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, value, "above zero")
        return value

    def sliding_layers(self, layers: int, period: int) -> tuple[bool, ...]:
        """Return which layers have a sliding window.

        Args:
            layers: how many there are.
            period: where the file does not say, every how many layers one sees everything.
        """
        key = "attention.sliding_window_pattern"
        value = self._get(key, period)
        if isinstance(value, list) and len(value) >= layers and all(isinstance(item, int) for item in value):
            return tuple(bool(item) for item in value[:layers])
        if not isinstance(value, int) or value <= 0:
            raise self._wrong(key, value, "a whole number, or one value for each layer")
        return tuple((layer + 1) % value != 0 for layer in range(layers))

    def sliding_period(self, layers: int, period: int) -> int:
        """Return every how many layers one sees everything, as :meth:`sliding_layers` does.

        Raises:
            ModelUnsupported: it is not every so many.
        """
        found = self.sliding_layers(layers, period)
        full = found.index(False) + 1 if False in found else layers + 1
        if found != tuple((layer + 1) % full != 0 for layer in range(layers)):
            raise ModelUnsupported(f"{self.path} has sliding windows in layers that no regular pattern describes")
        return full

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        # The file holds float32: 9.999999747378752e-06 was written as 1e-05.
        return float(f"{value:.7g}")

    def require(self, key: str, expected: float, default: float) -> None:
        """Refuse a file whose value differs from the only one that the architecture here has.

        Raises:
            ModelUnsupported: it differs.
        """
        value = self.real(key, default)
        if not math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-12):
            raise ModelUnsupported(
                f"{self.path} has {self._prefix}{key} = {value:g}, and only {expected:g} is converted"
            )

    def _get(self, key: str, default: object) -> Any:
        self._read.add(self._prefix + key)
        return self.header.metadata.get(self._prefix + key, default)

    def _wrong(self, key: str, value: object, form: str) -> CheckpointCorrupt:
        found = "is missing" if value is None else f"is {str(value)[:40]!r}"
        return CheckpointCorrupt(f"metadata {self._prefix}{key} of {self.path} {found}, and should be {form}")
