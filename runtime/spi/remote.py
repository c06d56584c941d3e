"""A model whose weights are read from afar: first the headers, then the bytes of a slice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from runtime.spi.checkpoint import Checkpoint, TensorInfo, header_end, read_checkpoint
from runtime.spi.digest import sample_range, sampled
from runtime.spi.partial import PartialFolder
from runtime.spi.ranges import Range, Ranges, covers, union
from runtime.spi.source import Download, Holding, ModelFiles, Progress, RangeReader, model_files, whole

HEADER_GUESS = 16 << 10
"""Bytes that are asked for in the hope that they hold a file's header."""
GAP = 16 << 10
"""Bytes between two tensors that are read along with them rather than asked around."""
SAMPLE_GAP = 4 << 10
"""Likewise between two samples."""


class RemoteFiles(ModelFiles):
    """A model in which :class:`~runtime.spi.partial.PartialFolder` holds what has come of the weights.

    A source derives from this where it has another way to get files that are wanted whole.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        here: Mapping[str, Path],
        parts: PartialFolder,
        read: RangeReader,
        progress: Progress,
    ) -> None:
        """Fetch the headers, and what the digest needs.

        Args:
            name: of the model, for progress.
            folder: holds configuration and tokenizer.
            here: weight files that are on this machine, whole.
            parts: the other weight files.
            read: reads them from where the model comes from.

        Raises:
            CheckpointCorrupt: a header is not one, or contradicts another.
            ModelError: the headers cannot be had.
        """
        self._name = name
        self._folder = folder
        self._here = dict(here)
        self._parts = parts
        self._read = read
        self._headers = self._fetch_headers(progress)
        self._checkpoint = self._present()

    @property
    def checkpoint(self) -> Checkpoint:
        """The headers, with what was absent after the last fetch."""
        return self._checkpoint

    def fetch(self, tensors: Collection[str], progress: Progress, lender: RangeReader | None = None) -> Checkpoint:
        """Fetch the tensors' bytes, those between neighbours included."""
        self._fill(self._wanted(tensors), progress, lender)
        self._checkpoint = self._present()
        return self._checkpoint

    def holdings(self) -> dict[str, Holding]:
        """Name every file, and the parts that are here."""
        held = {file.name: whole(file) for file in model_files(self._folder)}
        held |= {name: whole(path) for name, path in self._here.items()}
        for name, file in self._parts.files.items():
            if name not in self._here:
                held[name] = Holding(file.path, file.size, file.trusted)
        return held

    def _present(self) -> Checkpoint:
        absent = frozenset(
            tensor.name
            for tensor in self._headers.tensors.values()
            if tensor.file.name not in self._here
            and not covers(self._parts.files[tensor.file.name].ranges, *tensor.range)
        )
        tensors = {
            name: tensor
            if tensor.file.name not in self._here
            else msgspec.structs.replace(tensor, file=self._here[tensor.file.name])
            for name, tensor in self._headers.tensors.items()
        }
        return msgspec.structs.replace(self._headers, tensors=tensors, absent=absent)

    def _wanted(self, names: Collection[str]) -> dict[str, Ranges]:
        """Return where the tensors are, in files that are not here whole."""
        return self._ranges([self._headers.tensors[name] for name in names], lambda tensor: tensor.range, GAP)

    def _fill(self, wanted: Mapping[str, Ranges], progress: Progress, lender: RangeReader | None = None) -> None:
        def read(file: str, start: int, stop: int) -> bytes | None:
            lent = lender(file, start, stop) if lender is not None else None
            return lent if lent is not None else self._read(file, start, stop)

        self._parts.fill(wanted, read, lambda done, total: progress(Download(self._name, "downloading", done, total)))

    def _fetch_headers(self, progress: Progress) -> Checkpoint:
        files = {name: file for name, file in self._parts.files.items() if name not in self._here}
        self._fill({name: ((0, min(HEADER_GUESS, file.size)),) for name, file in files.items() if file.size}, progress)
        ends = {name: header_end(file.path, file.read(0, 8), file.size) for name, file in files.items()}
        self._fill({name: ((0, end),) for name, end in ends.items()}, progress)
        paths = [self._here.get(name, self._parts.folder / name) for name in sorted({*files, *self._here})]
        headers = read_checkpoint(self._folder, paths)
        self._fill(self._ranges(sampled(headers.tensors.values()), sample_range, SAMPLE_GAP), progress)
        return headers

    def _ranges(
        self, tensors: Collection[TensorInfo], where: Callable[[TensorInfo], Range], gap: int
    ) -> dict[str, Ranges]:
        found: dict[str, list[Range]] = {}
        for tensor in tensors:
            if tensor.file.name not in self._here:
                found.setdefault(tensor.file.name, []).append(where(tensor))
        return {name: union(ranges, gap=gap) for name, ranges in found.items()}
