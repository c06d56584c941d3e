"""The way to other nodes, if there is one."""

from __future__ import annotations

from loguru import logger

from runtime.actors.message import Lane
from runtime.actors.signal import Signal, Transport
from runtime.errors import MailboxFull, PeerUnreachable, RuntimeFault


class Outside:
    """Sends signals through the transport that the system has joined."""

    def __init__(self) -> None:
        self.transport: Transport | None = None

    def send(self, node: str, signal: Signal, lane: Lane) -> None:
        """Queue a signal; see :class:`~runtime.actors.signal.Transport`.

        Raises:
            PeerUnreachable: there is no link to that node.
            MailboxFull: the link's queue is full.
        """
        if self.transport is None:
            raise PeerUnreachable(f"there is no link to node {node}: this node is not part of a cluster")
        self.transport.send(node, signal, lane)

    async def send_patiently(self, node: str, signal: Signal, lane: Lane) -> None:
        """Queue a signal, waiting for room where the link's queue is full.

        Raises:
            PeerUnreachable: there is no link to that node, or it was lost while this waited.
        """
        while True:
            try:
                return self.send(node, signal, lane)
            except MailboxFull:
                assert self.transport is not None  # noqa: S101 - it is what refused
                await self.transport.room(node, lane)

    def send_or_log(self, node: str, signal: Signal, lane: Lane) -> None:
        """Send what the other side will do without, if it must: its link is down, and it knows."""
        try:
            self.send(node, signal, lane)
        except RuntimeFault as fault:
            logger.debug("{} for {} is not sent: {}", type(signal).__name__, node, fault)
