"""A model of the hub of which a slice is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from runtime.spi import Checkpoint, Download, Progress, RangeReader
from runtime.spi.partial import PartialFolder
from runtime.spi.ranges import size
from runtime.spi.remote import RemoteFiles
from runtime_hub.cache import cached_file, check_space, fetch_files
from runtime_hub.progress import Meter
from runtime_hub.remote import Remote
from runtime_hub.snapshot import RepoName

WHOLE = 0.97
"""Share of a file from which on it is fetched whole, into the hub's own cache."""


class HubFiles(RemoteFiles):
    """Fetches files that are wanted whole by huggingface_hub, and of the others the ranges."""

    def __init__(
        self,
        target: RepoName,
        remote: Remote | None,
        name: str,
        folder: Path,
        here: Mapping[str, Path],
        parts: PartialFolder,
        read: RangeReader,
        progress: Progress,
    ) -> None:
        """Fetch the headers; see :class:`~runtime.spi.remote.RemoteFiles`.

        ``remote`` is None where the hub cannot be asked; then nothing is whole that is not here already.
        """
        self._target = target
        self._remote = remote
        super().__init__(name, folder, here, parts, read, progress)

    def fetch(self, tensors: Collection[str], progress: Progress, lender: RangeReader | None = None) -> Checkpoint:
        """Fetch the tensors' bytes, with one count for all of them."""
        remote = self._remote
        if lender is not None or remote is None:
            return super().fetch(tensors, progress, lender)
        sizes = self._parts.sizes()
        lacking = {name: size(ranges) for name, ranges in self._parts.lacking(self._wanted(tensors)).items()}
        files = [name for name, count in lacking.items() if count >= WHOLE * sizes[name]]
        base = sum(sizes[name] for name in files)
        total = base + sum(count for name, count in lacking.items() if name not in files)
        if files:
            check_space(self._target, base)
            fetch_files(self._target, remote, files, Meter(self._name, progress, done=0, total=total))
            for name in files:
                path = cached_file(self._target, remote.commit, name)
                if path is not None:
                    self._here[name] = path

        def after(download: Download) -> None:
            progress(Download(self._name, download.step, base + download.done, total))

        return super().fetch(tensors, after)
