"""The models that a node can find: names to files, through the configured sources."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from loguru import logger

from runtime.errors import ActorStopped, ModelNotFound, RuntimeFault
from runtime.inference.card import describe, undescribed
from runtime.inference.failure import as_fault
from runtime.spi import (
    Checkpoint,
    Download,
    ModelCard,
    ModelFiles,
    ModelListing,
    ModelSource,
    Progress,
    RangeReader,
    read_checkpoint,
)

FETCHES = 4
"""Models that one source fetches at once. The threads are not those of other work, so that none waits for these."""
FILLS = 16
"""Slices that are fetched at once."""
LOOKS = 4
"""Listings and descriptions made at once."""
CARDS = 256
"""Descriptions that are kept."""
OPENED = 32
"""Models whose headers are kept."""
PART_BYTES = 255
"""Longest name of a file or folder on every system that is served here."""
NAME_BYTES = 4096
SHOWN = 80
"""Characters of an unknown name that are repeated to whoever asked."""


class Catalogue:
    """Asks the sources in their order. Sources block, so they run in worker threads."""

    def __init__(self, sources: Mapping[str, ModelSource]) -> None:
        self._sources = dict(sources)
        self._opening: dict[str, asyncio.Task[ModelFiles]] = {}
        self._opened: OrderedDict[str, ModelFiles] = OrderedDict()
        self._watching: dict[str, list[Progress]] = {}
        self._cards: OrderedDict[ModelListing, ModelCard | RuntimeFault] = OrderedDict()
        self._fetches = {name: CapacityLimiter(FETCHES) for name in sources}
        self._fills = CapacityLimiter(FILLS)
        self._looks = CapacityLimiter(LOOKS)

    async def listings(self) -> list[ModelListing]:
        """Models on this machine, by name. A source that fails is logged and left out."""
        found: dict[str, ModelListing] = {}
        for name, source in self._sources.items():
            try:
                for listing in await to_thread.run_sync(source.local, limiter=self._looks):
                    found.setdefault(listing.name, listing)
            except Exception as error:  # noqa: BLE001 - one source's failure must not hide what the others have
                logger.warning("source {} cannot list its models: {}", name, as_fault(error, f"listing {name}"))
        return [found[name] for name in sorted(found)]

    async def open(self, name: str, progress: Progress) -> ModelFiles:
        """Return a model's configuration, tokenizer and headers, fetching what is missing.

        Those who ask for one model at the same time share one answer.

        Raises:
            ModelNotFound: no source knows it.
            CheckpointCorrupt: its files are damaged.
        """
        watchers = self._watching.setdefault(name, [])
        watchers.append(progress)
        task = self._opening.get(name)
        if task is None:
            task = asyncio.create_task(self._open(name, watchers), name=f"open {name}")
            self._opening[name] = task
            task.add_done_callback(lambda task: self._open_done(name, task))
        try:
            return await asyncio.shield(task)
        finally:
            watchers.remove(progress)

    def _open_done(self, name: str, task: asyncio.Task[ModelFiles]) -> None:
        """Forget a task that is over, whether anybody still waits for it or not: the next one is a new one."""
        del self._opening[name]
        del self._watching[name]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            logger.debug("{} is not opened: {}", name, error)
        else:
            self.keep(name, task.result())

    def keep(self, name: str, files: ModelFiles) -> None:
        """Remember the files of a model, for those who ask what is at hand."""
        self._opened.pop(name, None)
        self._opened[name] = files
        while len(self._opened) > OPENED:
            self._opened.popitem(last=False)

    def opened(self, name: str) -> ModelFiles | None:
        """Return the files of a model that was opened since the node started, None if it was not."""
        return self._opened.get(name)

    async def fill(
        self, files: ModelFiles, tensors: Collection[str], progress: Progress, lender: RangeReader | None = None
    ) -> Checkpoint:
        """Fetch the bytes of some tensors of a model that was opened; see :meth:`~runtime.spi.ModelFiles.fetch`.

        When it is cancelled, the thread that fetches ends at its next progress; what came by then is kept.

        Raises:
            ModelError: they cannot be had.
        """
        given_up = threading.Event()

        def report(download: Download) -> None:
            if given_up.is_set():
                raise ActorStopped(f"nobody waits for {download.model} any more")
            progress(download)

        fetching = partial(_fill, files, tensors, report, lender)
        try:
            return await to_thread.run_sync(fetching, limiter=self._fills, abandon_on_cancel=True)
        except asyncio.CancelledError:
            given_up.set()
            raise
        except Exception as error:
            raise as_fault(error, f"fetching {len(tensors)} tensors of {files.checkpoint.path.name}") from error

    async def fetch(self, name: str, progress: Progress) -> Checkpoint:
        """Return a model's checkpoint with nothing absent.

        Raises:
            ModelNotFound: no source knows it.
            ModelError: it cannot be had, or its files are damaged.
        """
        files = await self.open(name, progress)
        return await self.fill(files, files.checkpoint.tensors.keys(), progress)

    async def cards(self) -> list[ModelCard]:
        """Describe the models on this machine. One that cannot be read is logged and left out."""
        cards = []
        for listing in await self.listings():
            try:
                cards.append(await self._card(listing))
            except RuntimeFault as fault:
                logger.warning("model {} is on this machine and cannot be used: {}", listing.name, fault)
        return cards

    async def card(self, name: str) -> ModelCard:
        """Describe one model on this machine.

        Raises:
            ModelNotFound: it is not on this machine; with the nearest names that are.
        """
        listings = await self.listings()
        for listing in listings:
            if listing.name == name:
                return await self._card(listing)
        if _possible(name):
            for source_name, source in self._sources.items():
                # A model that is named by its path need not be listed.
                if source.claims(name):
                    unlisted = await to_thread.run_sync(_at_path, name, source_name, limiter=self._looks)
                    if unlisted is not None:
                        return await self._card(unlisted)
        if name in self._opened:
            return await self._card(ModelListing(name, "", 0, 0.0))
        raise self._unknown(name, [listing.name for listing in listings])

    async def _card(self, listing: ModelListing) -> ModelCard:
        """Describe a model from what is there: nothing is downloaded or converted for a description.

        What is neither whole nor converted is described if it was opened since the node started.
        """
        files = self._opened.get(listing.name) if listing.path is None else None
        known = self._cards.pop(listing, None) if files is None else None
        if known is None:
            try:
                known = await to_thread.run_sync(_describe, listing, files, limiter=self._looks)
            except Exception as error:  # noqa: BLE001 - one model's files must not hide the others; told by its reason
                known = as_fault(error, f"describing {listing.name}")
        self._cards[listing] = known
        while len(self._cards) > CARDS:
            self._cards.popitem(last=False)
        if isinstance(known, RuntimeFault):
            raise known.with_traceback(None)
        return known

    async def _open(self, name: str, watchers: list[Progress]) -> ModelFiles:
        def tell_all(progress: Download) -> None:
            for watcher in list(watchers):
                watcher(progress)

        for source_name, source in self._sources.items() if _possible(name) else ():
            try:
                if source.claims(name):
                    opening = partial(_open, source, name, tell_all)
                    return await to_thread.run_sync(opening, limiter=self._fetches[source_name])
            except Exception as error:
                raise as_fault(error, f"fetching {name} from source {source_name}") from error
        raise self._unknown(name, [listing.name for listing in await self.listings()])

    def _unknown(self, name: str, known: list[str]) -> ModelNotFound:
        if len(name) > SHOWN:
            return ModelNotFound(
                f"there is no model {name[:SHOWN]!r}...; its name is too long to be one", param="model"
            )
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"this node has {', '.join(known) or 'none'}"
        return ModelNotFound(f"there is no model {name!r}: {hint}", param="model")


def _possible(name: str) -> bool:
    """Whether the machine can have a file of that name: sources ask it for one, and it fails instead of saying no."""
    raw = name.encode(errors="replace")
    return len(raw) <= NAME_BYTES and b"\0" not in raw and all(len(part) <= PART_BYTES for part in raw.split(b"/"))


def _at_path(name: str, source: str) -> ModelListing | None:
    """Return the model that is at the path ``name``, None if nothing is there."""
    try:
        path = Path(name).expanduser()
        stat = path.stat()
    except (OSError, RuntimeError, ValueError):  # the second for the home of a user that is not known
        return None
    if not path.is_dir():
        return ModelListing(name, source, stat.st_size, stat.st_mtime)
    # What merely looks like a relative path may be a repository's name.
    return ModelListing(name, source, 0, stat.st_mtime, path) if name.startswith(("/", ".", "~")) else None


def _open(source: ModelSource, name: str, progress: Progress) -> ModelFiles:
    """Open a model, and compute its digest while this is a thread that may wait for the disk."""
    files = source.open(name, progress)
    _ = files.checkpoint.digest
    return files


def _fill(files: ModelFiles, tensors: Collection[str], progress: Progress, lender: RangeReader | None) -> Checkpoint:
    checkpoint = files.fetch(tensors, progress, lender)
    _ = checkpoint.digest
    return checkpoint


def _describe(listing: ModelListing, files: ModelFiles | None) -> ModelCard:
    if files is not None:
        return describe(listing, files.checkpoint)
    return undescribed(listing) if listing.path is None else describe(listing, read_checkpoint(listing.path))
