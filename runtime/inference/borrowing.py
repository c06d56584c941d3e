"""Taking model files from other nodes, where they are nearer than where the model comes from."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from loguru import logger

from runtime.actors import ActorRef, ActorSystem
from runtime.errors import ActorStopped, CheckpointCorrupt, ModelError, ModelNotFound, RuntimeFault
from runtime.inference.catalogue import Catalogue
from runtime.inference.failure import check_digest
from runtime.inference.lending import FILES, PART_BYTES, AskInventory, FileHeld, Inventory, ReadPart
from runtime.spi import ModelFiles, Progress, RangeReader, TensorInfo
from runtime.spi.checkpoint import weight_files
from runtime.spi.partial import PartialFolder
from runtime.spi.ranges import covers, pieces
from runtime.spi.remote import RemoteFiles
from runtime.spi.source import MODEL_SUFFIXES

INVENTORY_SECONDS = 5.0
PART_SECONDS = 60.0
PARTS = 3
"""Parts that are asked of one node at once: one is read, one is on its way, one is written."""
OPENING = 4
"""Models that are opened at once."""
SMALL_BYTES = 256 << 20
"""The largest file beside the weights that is taken; tokenizers have some tens of megabytes."""

_DIGEST = re.compile("[0-9a-f]{64}")
_SHOWN = 80
"""Characters that are repeated of what is no digest."""


class Borrower:
    """Asks the other nodes of the cluster for model files.

    Args:
        peers: names of the other live nodes.
        folder: where models are kept that no source of this node has.
    """

    def __init__(self, system: ActorSystem, peers: Callable[[], Sequence[str]], folder: Path) -> None:
        self._system = system
        self._peers = peers
        self._folder = folder
        self._opening = CapacityLimiter(OPENING)
        self._opened: dict[str, RemoteFiles] = {}

    async def lender(self, model: str, digest: str) -> PeerReader:
        """Ask all peers what they have of a model, and return what reads it."""
        answers = await asyncio.gather(*(self._inventory(peer, model, digest) for peer in self._peers()))
        return PeerReader(self._system, model, digest, {peer: files for peer, files in answers if files})

    async def open(self, model: str, digest: str, progress: Progress) -> ModelFiles:
        """Open a model that no source of this node has.

        Raises:
            ModelError: nobody has it, or it is not what its digest says, or that is no digest.
        """
        # A peer sent it, and it names a folder that is written, and removed if what is in it is wrong.
        if _DIGEST.fullmatch(digest) is None:
            raise ModelError(f"a digest is 64 lowercase hexadecimal digits, and that of {model} is {digest[:_SHOWN]!r}")
        opened = self._opened.get(digest)
        if opened is not None:
            return opened
        lender = await self.lender(model, digest)
        if not lender.nodes:
            raise ModelError(f"no other node has {model}")
        opening = partial(self._open, model, digest, lender, progress)
        self._opened[digest] = await to_thread.run_sync(opening, limiter=self._opening)
        return self._opened[digest]

    async def _inventory(self, peer: str, model: str, digest: str) -> tuple[str, dict[str, FileHeld]]:
        try:
            answer = await self._system.ask(ActorRef(peer, f"/{FILES}"), AskInventory(model, digest), INVENTORY_SECONDS)
        except RuntimeFault as fault:
            logger.debug("{} does not say what it has of {}: {}", peer, model, fault)
            answer = Inventory(())
        return peer, {file.name: file for file in answer.files}

    def _open(self, model: str, digest: str, lender: PeerReader, progress: Progress) -> RemoteFiles:
        """Take the small files, and the headers of the others."""
        folder = self._folder / digest
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: size for name, size in lender.files().items() if _is_plain(name)}
        for name, size in files.items():
            if name.endswith(MODEL_SUFFIXES) and size <= SMALL_BYTES:
                _take(folder / name, size, lender)
        sizes = {name: files[name] for name in weight_files(folder, files)}
        opened = RemoteFiles(model, folder, {}, PartialFolder(folder, sizes), _only(lender), progress)
        if opened.checkpoint.digest != digest:
            # Nothing in it can be told from what is right.
            shutil.rmtree(folder)
            raise CheckpointCorrupt(f"what other nodes sent of {model} is not what they said they have; ask again")
        return opened


class PeerReader:
    """A :class:`~runtime.spi.RangeReader` over the files of other nodes; for worker threads. Made on the event loop."""

    def __init__(
        self, system: ActorSystem, model: str, digest: str, inventories: dict[str, dict[str, FileHeld]]
    ) -> None:
        self._system = system
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._digest = digest
        self._inventories = inventories
        self._asking = {node: threading.BoundedSemaphore(PARTS) for node in inventories}
        self._waiting = dict.fromkeys(inventories, 0)
        self._lock = threading.Lock()

    @property
    def nodes(self) -> list[str]:
        """Those that have something, and have not failed."""
        return list(self._inventories)

    def files(self) -> dict[str, int]:
        """Sizes of the files that any node has anything of, by name."""
        return {name: file.size for files in self._inventories.values() for name, file in files.items()}

    def has_any(self, tensors: Iterable[TensorInfo]) -> bool:
        """Whether some node has one of these tensors."""
        return any(self._holders(tensor.file.name, *tensor.range) for tensor in tensors)

    def __call__(self, file: str, start: int, stop: int) -> bytes | None:
        """Return the bytes from whichever node has them and is least asked, None if no node has."""
        while True:
            with self._lock:
                holders = self._holders(file, start, stop)
                if not holders:
                    return None
                node = min(holders, key=lambda holder: self._waiting[holder])
                self._waiting[node] += 1
            try:
                with self._asking[node]:
                    return self._ask(node, file, start, stop)
            except (RuntimeFault, TimeoutError) as fault:
                logger.info("{} gives no more of {}: {}", node, self._model, fault)
                with self._lock:
                    self._inventories.pop(node, None)
            finally:
                with self._lock:
                    self._waiting[node] -= 1

    def _ask(self, node: str, file: str, start: int, stop: int) -> bytes:
        order = ReadPart(self._model, self._digest, file, start, stop)
        asked = self._system.ask(ActorRef(node, f"/{FILES}"), order, PART_SECONDS)
        try:
            answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError:
            asked.close()
            raise ActorStopped("this node stops") from None
        part = answer.result(PART_SECONDS + INVENTORY_SECONDS)
        if part.data.nbytes != stop - start:
            raise ModelError(f"it sent {part.data.nbytes} bytes of {file} instead of {stop - start}")
        return bytes(part.data.data)

    def _holders(self, file: str, start: int, stop: int) -> list[str]:
        return [
            node
            for node, files in self._inventories.items()
            if (held := files.get(file)) is not None and covers(held.ranges, start, stop)
        ]


async def open_same(
    catalogue: Catalogue,
    borrower: Borrower | None,
    model: str,
    digest: str,
    progress: Progress,
    *,
    node: str,
    driver: str,
) -> ModelFiles:
    """Open the model that another node serves: from this node's sources, or else from other nodes.

    Args:
        borrower: None where nodes share no files.
        digest: of the model that is meant.
        node: this one.
        driver: the one that serves the model.

    Raises:
        ModelNotFound: this node's sources do not have it, and neither do others that would give it.
        ModelError: they have another model of that name, or cannot be reached.
    """
    try:
        files = await catalogue.open(model, progress)
    except (ModelNotFound, ModelError) as fault:
        if borrower is None:
            raise
        logger.info("{} is asked of other nodes: {}", model, fault)
        try:
            files = await borrower.open(model, digest, progress)
        except RuntimeFault as refusal:
            logger.info("{} is not to be had from other nodes: {}", model, refusal)
            raise fault from refusal
        catalogue.keep(model, files)
    check_digest(model, files.checkpoint.digest, digest, node=node, driver=driver)
    return files


def _is_plain(name: str) -> bool:
    """Whether a peer's name for a file is one that may be written here, and is no code."""
    return (
        Path(name).name == name
        and not name.startswith(".")
        and "\0" not in name
        and name.endswith((*MODEL_SUFFIXES, ".safetensors"))
    )


def _take(path: Path, size: int, lender: PeerReader) -> None:
    """Fetch a whole file, unless it is here; written aside and renamed, as other processes may do the same."""
    if path.is_file() and path.stat().st_size == size:
        return
    read = _only(lender)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with aside.open("wb") as stream:
        for start, stop in pieces(((0, size),) if size else (), PART_BYTES):
            stream.write(read(path.name, start, stop) or b"")
    aside.replace(path)


def _only(lender: PeerReader) -> RangeReader:
    """Make a reader for which there is no other place to look."""

    def read(file: str, start: int, stop: int) -> bytes:
        data = lender(file, start, stop)
        if data is None:
            raise ModelError(
                f"no node has bytes {start} to {stop - 1} of {file}, and no source of this node has the model; "
                "give this node the model, or start one that has it"
            )
        return data

    return read
