"""The models that a node can find: names to folders, through the configured sources."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from loguru import logger

from runtime.errors import ModelNotFound, RuntimeFault
from runtime.inference.card import describe, undescribed
from runtime.inference.failure import as_fault
from runtime.spi import Checkpoint, Download, ModelCard, ModelListing, ModelSource, Progress, read_checkpoint

FETCHES = 4
"""Models that one source fetches at once. The threads are not those of other work, so that none waits for these."""
LOOKS = 4
"""Listings and descriptions made at once."""
CARDS = 256
"""Descriptions that are kept."""
PART_BYTES = 255
"""Longest name of a file or folder on every system that is served here."""
NAME_BYTES = 4096
SHOWN = 80
"""Characters of an unknown name that are repeated to whoever asked."""


class Catalogue:
    """Asks the sources in their order. Sources block, so they run in worker threads."""

    def __init__(self, sources: Mapping[str, ModelSource]) -> None:
        self._sources = dict(sources)
        self._fetching: dict[str, asyncio.Task[Checkpoint]] = {}
        self._watching: dict[str, list[Progress]] = {}
        self._cards: OrderedDict[ModelListing, ModelCard | RuntimeFault] = OrderedDict()
        self._fetches = {name: CapacityLimiter(FETCHES) for name in sources}
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

    async def fetch(self, name: str, progress: Progress) -> Checkpoint:
        """Return a model's checkpoint, downloading or converting what is missing; once for all who ask meanwhile.

        Raises:
            ModelNotFound: no source knows it.
            CheckpointCorrupt: its files are damaged.
        """
        watchers = self._watching.setdefault(name, [])
        watchers.append(progress)
        task = self._fetching.get(name)
        if task is None:
            task = asyncio.create_task(self._fetch(name, watchers), name=f"fetch {name}")
            self._fetching[name] = task
            task.add_done_callback(lambda task: self._fetched(name, task))
        try:
            return await asyncio.shield(task)
        finally:
            watchers.remove(progress)

    def _fetched(self, name: str, task: asyncio.Task[Checkpoint]) -> None:
        """Forget a fetch that is over, whether anybody still waits for it or not: the next one is a new one."""
        del self._fetching[name]
        del self._watching[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("{} is not fetched: {}", name, error)

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
        raise self._unknown(name, [listing.name for listing in listings])

    async def _card(self, listing: ModelListing) -> ModelCard:
        """Describe a model from what is there: nothing is downloaded or converted for a description."""
        known = self._cards.pop(listing, None)
        if known is None:
            try:
                known = await to_thread.run_sync(_describe, listing, limiter=self._looks)
            except Exception as error:  # noqa: BLE001 - one model's files must not hide the others; told by its reason
                known = as_fault(error, f"describing {listing.name}")
        self._cards[listing] = known
        while len(self._cards) > CARDS:
            self._cards.popitem(last=False)
        if isinstance(known, RuntimeFault):
            raise known.with_traceback(None)
        return known

    async def _fetch(self, name: str, watchers: list[Progress]) -> Checkpoint:
        def tell_all(progress: Download) -> None:
            for watcher in list(watchers):
                watcher(progress)

        for source_name, source in self._sources.items() if _possible(name) else ():
            try:
                if source.claims(name):
                    limiter = self._fetches[source_name]
                    path = await to_thread.run_sync(source.fetch, name, tell_all, limiter=limiter)
                    return await to_thread.run_sync(_read, path, limiter=limiter)
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


def _describe(listing: ModelListing) -> ModelCard:
    return undescribed(listing) if listing.path is None else describe(listing, _read(listing.path))


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint's headers, and its digest while this is a thread that may wait for the disk."""
    checkpoint = read_checkpoint(path)
    _ = checkpoint.digest
    return checkpoint
