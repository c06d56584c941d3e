"""What travels between two actor systems: messages with their addressing, and the life signs of actors.

The wire carries these; a local delivery makes none of them.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from runtime.actors.message import Lane, Message
from runtime.actors.ref import ActorRef


class Tell(msgspec.Struct, frozen=True):
    """Deliver, and forget."""

    target: ActorRef
    message: Message


class Caller(msgspec.Struct, frozen=True):
    """An actor that handles no other message until its ask, the one of this number on its node, is over."""

    ref: ActorRef
    ask: int


class Ask(msgspec.Struct, frozen=True):
    """Deliver, and answer with :class:`Answer` or :class:`Failure` under ``id`` within ``timeout_ms``.

    ``chain`` names the actors that wait for this answer, the first asker first, so that a cycle is seen.
    """

    target: ActorRef
    message: Message
    id: int
    timeout_ms: int
    chain: tuple[Caller, ...] = ()


class Cancel(msgspec.Struct, frozen=True):
    """Nobody waits for the answer to this ask any more. It goes on the lane of the ask, so as to come after it."""

    id: int


class Answer(msgspec.Struct, frozen=True):
    """The reply to an ask."""

    id: int
    value: Message | None


class Failure(msgspec.Struct, frozen=True):
    """Why an ask has no reply: a fault's ``code`` and text."""

    id: int
    code: str
    text: str


class Watch(msgspec.Struct, frozen=True):
    """Send :class:`Gone` to the asking node when the actor is gone."""

    target: ActorRef


class Unwatch(msgspec.Struct, frozen=True):
    """Take a :class:`Watch` back."""

    target: ActorRef


class Gone(msgspec.Struct, frozen=True):
    """A watched actor is gone."""

    target: ActorRef
    reason: str


Signal = Tell | Ask | Cancel | Answer | Failure | Watch | Unwatch | Gone


class Transport(Protocol):
    """Carries signals to other nodes."""

    def send(self, node: str, signal: Signal, lane: Lane) -> None:
        """Queue a signal, in order with those before it on the same lane.

        Raises:
            PeerUnreachable: there is no link to that node.
            MailboxFull: the link's queue is full.
        """

    async def room(self, node: str, lane: Lane) -> None:
        """Wait until the queue that was found full has room again, or its link is gone."""
