"""What actors send each other: frozen, tagged structs that mean the same on every node."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import ClassVar, Generic, TypeVar

import msgspec

from runtime.actors.ref import ActorRef


class Lane(IntEnum):
    """Which of the two connections of a peer carries a message."""

    CONTROL = 0
    """Small messages that must not wait behind a tensor."""
    BULK = 1
    """Tensors."""


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of all messages. Every subclass states a ``tag``, which is its stable name between nodes."""

    lane: ClassVar[Lane] = Lane.CONTROL


Reply = TypeVar("Reply", bound="Message | None", covariant=True)


class Request(Message, Generic[Reply], frozen=True):
    """A message that is answered with a ``Reply``, by what ``receive`` returns."""


class Down(Message, frozen=True, tag="actor.down"):
    """A monitored actor is gone. Delivered exactly once for each ``monitor``, ahead of messages that still wait.

    ``reason`` is ``normal`` (it was stopped), ``failed``, ``killed`` (its node shut down and did not wait any longer),
    ``noproc`` (it was not there) or ``noconnection`` (its node was lost).
    """

    ref: ActorRef
    reason: str


class UnknownTag(LookupError):
    """A message whose type this node does not have."""


_types: dict[str, type[Message]] = {}


def message_type(tag: str) -> type[Message]:
    """Return the class with this tag.

    Raises:
        UnknownTag: no imported module defines it.
        TypeError: two classes claim one tag, which is a bug.
    """
    found = _types.get(tag)
    if found is None:
        _types.clear()
        _collect(Message)
        found = _types.get(tag)
        if found is None:
            raise UnknownTag(tag)
    return found


def tag_of(message: Message | type[Message]) -> str:
    """Return a message's stable name.

    Raises:
        TypeError: its class states none. msgspec then takes the class's own name, which may clash or change unseen.
    """
    return _tag(message if isinstance(message, type) else type(message))


@cache
def _tag(cls: type[Message]) -> str:
    tag = cls.__struct_config__.tag
    if not isinstance(tag, str) or tag == cls.__name__:
        raise TypeError(f"{cls.__module__}.{cls.__name__} has no tag; state one in its class line")
    return tag


def _collect(base: type[Message]) -> None:
    for cls in base.__subclasses__():
        tag = cls.__struct_config__.tag
        # Bases such as Request state no tag of their own, and nobody sends them.
        if isinstance(tag, str) and tag != cls.__name__:
            other = _types.setdefault(tag, cls)
            if other is not cls:
                raise TypeError(f"{other.__module__}.{other.__name__} and {cls.__module__}.{cls.__name__} share a tag")
        _collect(cls)
