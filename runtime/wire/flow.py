"""Credit: how much a sender may have under way that the receiver has not consumed, without any I/O.

The receiver grants totals since the beginning of the session, so a grant can be late but never lost or counted twice.
A message that is larger than half the receiver's window may be sent when half the window is free; a window therefore
bounds what is under way to itself, or to half of itself and one larger message.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import ProtocolError
from runtime.wire.frame import Grant


class Window:
    """What a receiver has room for on one lane: the whole of its grants, less what is consumed."""

    __slots__ = ("messages", "size")

    def __init__(self, messages: int, size: int) -> None:
        """``size`` is in bytes.

        Raises:
            ValueError: a window of nothing would let nothing through, ever.
        """
        if messages < 1 or size < 2:
            raise ValueError(f"a window has room for at least one message and two bytes, not {messages} and {size}")
        self.messages = messages
        self.size = size


class Budget:
    """The sender's side of one lane."""

    def __init__(self) -> None:
        self._granted = Grant(0, 0)
        self._half = 0
        self._messages = 0
        self._size = 0

    def spend(self, size: int) -> bool:
        """Return whether one more message of this size may be sent; if so, take note that it is."""
        if self._messages >= self._granted.messages or self._size + min(size, self._half) > self._granted.size:
            return False
        self._messages += 1
        self._size += size
        return True

    def raise_to(self, grant: Grant) -> None:
        """Take a grant. The first one is the receiver's whole window.

        Raises:
            ProtocolError: it takes back what was granted.
        """
        if grant.messages < self._granted.messages or grant.size < self._granted.size:
            raise ProtocolError("a grant takes back what was granted")
        if self._granted.size == 0:
            self._half = grant.size // 2
        self._granted = grant

    @property
    def left(self) -> Grant:
        """What may still be sent; below nothing after a message that was larger than what was left."""
        return Grant(self._granted.messages - self._messages, self._granted.size - self._size)


class Allowance:
    """The receiver's side of one lane."""

    def __init__(self, window: Window) -> None:
        # Plain numbers, added up as things come and go: each message passes here, and a Grant is only made to be sent.
        self._half = window.size // 2
        self._enough_messages = -(-window.messages // 2)
        self._enough_size = -(-window.size // 2)
        self._held_messages = self._held_size = 0
        self._received_messages = self._received_size = 0
        self._granted_messages = self._granted_size = 0
        self._free_messages, self._free_size = window.messages, window.size
        """What there is room for and no grant."""

    @property
    def held(self) -> Grant:
        """What was received and is not consumed."""
        return Grant(self._held_messages, self._held_size)

    def receive(self, sizes: Sequence[int]) -> None:
        """Take note that messages of these sizes have begun to arrive.

        Raises:
            ProtocolError: one was not granted.
        """
        for size in sizes:
            needed = self._received_size + min(size, self._half)
            if self._received_messages >= self._granted_messages or needed > self._granted_size:
                raise ProtocolError(f"a message of {size} bytes came without credit for it")
            self._received_messages += 1
            self._received_size += size
            self._held_messages += 1
            self._held_size += size

    def consume(self, size: int, messages: int = 1) -> None:
        """Take note that a message, or several of this size together, are done with."""
        self._held_messages -= messages
        self._held_size -= size
        self._free_messages += messages
        self._free_size += size

    @property
    def worth_granting(self) -> bool:
        """Whether half of the window, or more, is free to be granted again.

        Waiting for half saves frames; waiting for more could leave a sender, whose next message is large, waiting
        for ever.
        """
        return self._free_messages >= self._enough_messages or self._free_size >= self._enough_size

    def due(self) -> Grant | None:
        """Return the grant to send now, if it is worth a frame."""
        if not self.worth_granting:
            return None
        self._granted_messages += self._free_messages
        self._granted_size += self._free_size
        self._free_messages = self._free_size = 0
        return Grant(self._granted_messages, self._granted_size)
