"""Credit: how much a sender may have under way that the receiver has not consumed, without any I/O.

The receiver grants totals since the beginning of the session, so a grant can be late but never lost or counted twice.
A message that is larger than half the receiver's window may be sent when half the window is free; a window therefore
bounds what is under way to itself, or to half of itself and one larger message.
"""

from __future__ import annotations

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

    def covers(self, size: int) -> bool:
        """Whether one more message of this size may be sent."""
        return self._messages < self._granted.messages and self._size + min(size, self._half) <= self._granted.size

    def spend(self, size: int) -> None:
        """Take note that a message of this size is sent."""
        self._messages += 1
        self._size += size

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
        self._window = window
        # Counted in plain numbers where a message costs microseconds, as Grant only where one is sent.
        self._received_messages = self._received_size = 0
        self._consumed_messages = self._consumed_size = 0
        self._granted = Grant(0, 0)

    @property
    def held(self) -> Grant:
        """What was received and is not consumed."""
        return Grant(self._received_messages - self._consumed_messages, self._received_size - self._consumed_size)

    def receive(self, size: int) -> None:
        """Take note that a message of this size has begun to arrive.

        Raises:
            ProtocolError: it was not granted.
        """
        needed = self._received_size + min(size, self._window.size // 2)
        if self._received_messages >= self._granted.messages or needed > self._granted.size:
            raise ProtocolError(f"a message of {size} bytes came without credit for it")
        self._received_messages += 1
        self._received_size += size

    def consume(self, size: int, messages: int = 1) -> None:
        """Take note that a message, or several of this size together, are done with."""
        self._consumed_messages += messages
        self._consumed_size += size

    @property
    def worth_granting(self) -> bool:
        """Whether half of the window, or more, is free to be granted again.

        Waiting for half saves frames; waiting for more could leave a sender, whose next message is large, waiting
        for ever.
        """
        messages, size = self._free()
        return 2 * messages >= self._window.messages or 2 * size >= self._window.size

    def due(self) -> Grant | None:
        """Return the grant to send now, if it is worth a frame."""
        if not self.worth_granting:
            return None
        messages, size = self._free()
        self._granted = Grant(self._granted.messages + messages, self._granted.size + size)
        return self._granted

    def _free(self) -> tuple[int, int]:
        """Messages and bytes that there is room for and no grant."""
        return (
            self._consumed_messages + self._window.messages - self._granted.messages,
            self._consumed_size + self._window.size - self._granted.size,
        )
