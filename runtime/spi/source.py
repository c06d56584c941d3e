"""Where models come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

import msgspec


class Download(msgspec.Struct, frozen=True):
    """Progress of one fetch, in bytes. ``total`` is None while it is not known."""

    model: str
    step: str
    """What is being done, in a word or two: ``downloading``, ``converting``."""
    done: int
    total: int | None


class Progress(Protocol):
    """Receives progress, from whichever thread the source works in, as often as it likes."""

    def __call__(self, progress: Download, /) -> None: ...


class ModelListing(msgspec.Struct, frozen=True):
    """A model that is on this machine and can be loaded without the network."""

    name: str
    """The name to ask for it by."""
    source: str
    bytes: int
    """Size of its files."""
    modified: float
    """Seconds since the epoch."""
    path: Path | None = None
    """Its folder, if :meth:`ModelSource.fetch` would return it without downloading or converting anything.

    A model without one is listed, and described by nothing but its name, size and age.
    """


class ModelSource(ABC):
    """Turns a model's name into a folder in the Hugging Face or MLX layout.

    Such a folder holds ``config.json``, safetensors files and the tokenizer's files; a source whose models come in
    another form converts once and keeps the result. Methods may block: the kernel calls them in a worker thread.
    The configured sources are asked in their order, and the first that answers wins.
    """

    @abstractmethod
    def claims(self, name: str) -> bool:
        """Whether the name has the form of this source's names. Answers from the text alone, or one ``stat``."""

    @abstractmethod
    def local(self) -> list[ModelListing]:
        """Models of this source that are already on the machine, without using the network."""

    @abstractmethod
    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the model's folder, downloading or converting what is missing.

        Raises:
            ModelNotFound: the source claims the form of the name and has no such model. The message says where it
                looked, and the nearest names there are.
            CheckpointCorrupt: the model's files are damaged.
        """
