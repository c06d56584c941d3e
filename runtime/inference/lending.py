"""Giving other nodes the parts of model files that this one has, over the links that the cluster's key opens."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import ClassVar

import msgspec
from anyio import CapacityLimiter, to_thread

from runtime.actors import Actor, Lane, Message, ReplyTo, Request
from runtime.errors import InvalidRequest, ModelNotFound, NotFound, Overloaded
from runtime.inference.catalogue import Catalogue
from runtime.inference.failure import as_fault
from runtime.spi import Holding
from runtime.spi.ranges import Ranges, covers
from runtime.spi.source import WholeFolder
from runtime.wire import Tensor

FILES = "files"
"""Path of every node's :class:`Lender`."""
PART_BYTES = 4 << 20
"""Most that is lent in one message."""
READS = 4
"""Parts that are read from the disk at once."""
WAITING = 64
"""Parts that may wait for that; further ones are refused."""
LENT = 16
"""Models whose files are remembered."""


class FileHeld(msgspec.Struct, frozen=True):
    """What a node has of one file."""

    name: str
    size: int
    ranges: Ranges


class Inventory(Message, frozen=True, tag="files.inventory"):
    """What a node has of a model; nothing where it does not have that model."""

    files: tuple[FileHeld, ...]


class AskInventory(Request[Inventory], frozen=True, tag="files.ask"):
    """Ask what a node has of a model, of the very same as the asker means."""

    model: str
    digest: str


class FilePart(Message, frozen=True, tag="files.part"):
    """Bytes of a file."""

    lane: ClassVar[Lane] = Lane.BULK
    data: Tensor
    """``uint8``, of one dimension."""


class ReadPart(Request[FilePart], frozen=True, tag="files.read"):
    """Ask for bytes ``start`` to ``stop - 1`` of a file that the inventory named; :data:`PART_BYTES` at most."""

    model: str
    digest: str
    file: str
    start: int
    stop: int


class Lender(Actor):
    """Answers for the models that are on its node. Nothing is downloaded or converted for a peer.

    A file is named by the model that it is of, and found among that model's files: a name is never a path.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._held: OrderedDict[tuple[str, str], dict[str, Holding]] = OrderedDict()
        self._reads = CapacityLimiter(READS)
        self._reading = 0

    async def receive(self, message: Message) -> Message | None:
        """Answer, beside the mailbox: disks may be slow."""
        match message:
            case AskInventory():
                reply = self.context.reply_later()
                self.context.start_task(self._tell(message, reply), "inventory", reply)
            case ReadPart():
                reply = self.context.reply_later()
                self.context.start_task(self._lend(message, reply), f"read {message.file}", reply)
        return None

    async def _tell(self, order: AskInventory, reply: ReplyTo) -> None:
        try:
            held = await self._look(order.model, order.digest)
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker is to hear it, and others are served
            reply.fail(as_fault(error, f"looking for {order.model}"))
            return
        files = (FileHeld(name, holding.size, holding.ranges) for name, holding in held.items())
        reply.answer(Inventory(tuple(files)))

    async def _lend(self, order: ReadPart, reply: ReplyTo) -> None:
        if self._reading >= WAITING:
            reply.fail(Overloaded(f"{WAITING} parts of model files are being read already; try again later"))
            return
        self._reading += 1
        try:
            held = self._held.get((order.model, order.digest)) or await self._look(order.model, order.digest)
            data = await to_thread.run_sync(partial(_read, held.get(order.file), order), limiter=self._reads)
            reply.answer(FilePart(Tensor("uint8", (len(data),), data)))
        except Exception as error:  # noqa: BLE001 - as above
            reply.fail(as_fault(error, f"reading {order.file} of {order.model}"))
        finally:
            self._reading -= 1

    async def _look(self, model: str, digest: str) -> dict[str, Holding]:
        """Find the model among those that were opened here, and then among those on this machine."""
        opened = self._catalogue.opened(model)
        if opened is None or opened.checkpoint.digest != digest:
            try:
                card = await self._catalogue.card(model)
            except ModelNotFound:
                return {}
            listing = next((entry for entry in await self._catalogue.listings() if entry.name == model), None)
            if card.digest != digest or listing is None or listing.path is None:
                return {}
            opened = await to_thread.run_sync(WholeFolder, listing.path, limiter=self._reads)
        held = await to_thread.run_sync(opened.holdings, limiter=self._reads)
        self._held.pop((model, digest), None)
        self._held[model, digest] = held
        while len(self._held) > LENT:
            self._held.popitem(last=False)
        return held


def _read(holding: Holding | None, order: ReadPart) -> bytes:
    if holding is None:
        raise NotFound(f"there is no file {order.file} of {order.model} here")
    if not 0 <= order.start < order.stop <= holding.size or order.stop - order.start > PART_BYTES:
        raise InvalidRequest(
            f"bytes {order.start} to {order.stop} of {order.file} were asked for; it has {holding.size}, "
            f"and {PART_BYTES} are given at once"
        )
    if not covers(holding.ranges, order.start, order.stop):
        raise NotFound(f"bytes {order.start} to {order.stop - 1} of {order.file} are not here")
    with holding.path.open("rb") as stream:
        stream.seek(order.start)
        return stream.read(order.stop - order.start)
