"""Where models come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import msgspec

from runtime.spi.checkpoint import Checkpoint, read_checkpoint
from runtime.spi.ranges import Ranges


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


class RangeReader(Protocol):
    """Reads a part of one of a model's files from wherever it is. Called from several threads at once; may block."""

    def __call__(self, file: str, start: int, stop: int, /) -> bytes | None:
        """Return bytes ``start`` to ``stop - 1`` of a file, or None where they are not to be had here.

        Raises:
            RuntimeFault: they should be, and cannot be read.
        """


class Holding(msgspec.Struct, frozen=True):
    """What of one of a model's files is on this machine."""

    path: Path
    size: int
    """Bytes of the whole file."""
    ranges: Ranges
    """The bytes that are here."""


MODEL_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Files of a model beside its weights: configuration and tokenizer, and never code."""


class ModelFiles(ABC):
    """A model whose configuration, tokenizer and tensor headers are on this machine, whether or not its weights are.

    Methods may block, and may be called from any thread.
    """

    @property
    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """The headers, with what was :attr:`~runtime.spi.Checkpoint.absent` after the last fetch."""

    @abstractmethod
    def fetch(self, tensors: Collection[str], progress: Progress, lender: RangeReader | None = None) -> Checkpoint:
        """See to it that the bytes of these tensors are here, and return the checkpoint in which they are not absent.

        Args:
            tensors: names from the checkpoint.
            progress: is called with the bytes of this fetch alone.
            lender: a source that is nearer; what it does not have is fetched from where the model comes from.

        Raises:
            ModelError: they cannot be had, or there is no room for them.
        """

    @abstractmethod
    def holdings(self) -> dict[str, Holding]:
        """Say what is here of each file that the model is made of, by its name; all are in one folder elsewhere."""


class WholeFolder(ModelFiles):
    """A folder in which nothing is missing."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            CheckpointCorrupt: a file is damaged.
        """
        self._checkpoint = read_checkpoint(folder)

    @property
    def checkpoint(self) -> Checkpoint:
        """The folder's headers."""
        return self._checkpoint

    def fetch(self, tensors: Collection[str], progress: Progress, lender: RangeReader | None = None) -> Checkpoint:
        """Return the checkpoint: all of it is here."""
        del tensors, progress, lender
        return self._checkpoint

    def holdings(self) -> dict[str, Holding]:
        """Name every file, whole."""
        weights = {tensor.file for tensor in self._checkpoint.tensors.values()}
        return {file.name: whole(file) for file in (*model_files(self._checkpoint.path), *weights)}


def model_files(folder: Path) -> list[Path]:
    """List the files of a model beside its weights."""
    return sorted(file for file in folder.iterdir() if file.suffix in MODEL_SUFFIXES and file.is_file())


def whole(file: Path) -> Holding:
    """Say that all of a file is here."""
    size = file.stat().st_size
    return Holding(file, size, ((0, size),) if size else ())


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

    def open(self, name: str, progress: Progress) -> ModelFiles:
        """Return a model's headers, and the means to get the bytes of a slice.

        A source that can read parts of files fetches no weights here. This one fetches everything.

        Raises:
            ModelNotFound, CheckpointCorrupt: as :meth:`fetch`.
        """
        return WholeFolder(self.fetch(name, progress))

    @abstractmethod
    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the model's folder, whole, downloading or converting what is missing.

        Raises:
            ModelNotFound: the source claims the form of the name and has no such model. The message says where it
                looked, and the nearest names there are.
            CheckpointCorrupt: the model's files are damaged.
        """
