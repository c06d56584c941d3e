"""The models that a node can find: names to folders, through the configured sources."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from anyio import to_thread
from loguru import logger

from runtime.errors import ModelNotFound, RuntimeFault
from runtime.inference.card import describe
from runtime.inference.failure import as_fault
from runtime.spi import Checkpoint, Download, ModelCard, ModelListing, ModelSource, Progress, read_checkpoint


class Catalogue:
    """Asks the sources in their order. Sources block, so they run in worker threads."""

    def __init__(self, sources: Mapping[str, ModelSource]) -> None:
        self._sources = dict(sources)
        self._fetching: dict[str, asyncio.Task[Checkpoint]] = {}
        self._watching: dict[str, list[Progress]] = {}
        self._cards: dict[tuple[str, float], ModelCard] = {}

    async def listings(self) -> list[ModelListing]:
        """Models on this machine, by name. A source that fails is logged and left out."""
        found: dict[str, ModelListing] = {}
        for name, source in self._sources.items():
            try:
                for listing in await to_thread.run_sync(source.local):
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
        modified = await to_thread.run_sync(_modified, name)
        for source_name, source in self._sources.items():
            # A model that is named by its path need not be listed.
            if modified is not None and source.claims(name):
                return await self._card(ModelListing(name, source_name, 0, modified))
        raise self._unknown(name, [listing.name for listing in listings])

    async def _card(self, listing: ModelListing) -> ModelCard:
        key = (listing.name, listing.modified)
        if key not in self._cards:
            if listing.path is not None:
                checkpoint = await to_thread.run_sync(_read, listing.path)
            else:
                checkpoint = await self.fetch(listing.name, lambda progress: None)
            self._cards[key] = await to_thread.run_sync(describe, listing, checkpoint)
        return self._cards[key]

    async def _fetch(self, name: str, watchers: list[Progress]) -> Checkpoint:
        def tell_all(progress: Download) -> None:
            for watcher in list(watchers):
                watcher(progress)

        for source_name, source in self._sources.items():
            try:
                if source.claims(name):
                    path = await to_thread.run_sync(source.fetch, name, tell_all)
                    return await to_thread.run_sync(_read, path)
            except Exception as error:
                raise as_fault(error, f"fetching {name} from source {source_name}") from error
        raise self._unknown(name, [listing.name for listing in await self.listings()])

    def _unknown(self, name: str, known: list[str]) -> ModelNotFound:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"this node has {', '.join(known) or 'none'}"
        return ModelNotFound(f"there is no model {name!r}: {hint}", param="model")


def _modified(name: str) -> float | None:
    """Return when the file or folder of that name was changed, in seconds since the epoch; None if there is none."""
    try:
        return Path(name).expanduser().stat().st_mtime
    except (OSError, RuntimeError, ValueError):
        return None


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint's headers, and its digest while this is a thread that may wait for the disk."""
    checkpoint = read_checkpoint(path)
    _ = checkpoint.digest
    return checkpoint
