"""One message to the same well-known actor on other nodes."""

from __future__ import annotations

from collections.abc import Iterable

from loguru import logger

from runtime.actors import ActorRef, ActorSystem, Message
from runtime.errors import RuntimeFault


def broadcast(system: ActorSystem, nodes: Iterable[str], path: str, message: Message) -> None:
    """Tell the actor at ``path`` on each node.

    For state that is sent again: a node that cannot be reached now is told with the next broadcast.
    """
    for node in nodes:
        try:
            system.tell(ActorRef(node, path), message)
        except RuntimeFault as fault:
            logger.debug("{} for {}{} is not sent: {}", type(message).__name__, node, path, fault)
