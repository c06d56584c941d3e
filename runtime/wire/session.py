"""The protocol of one session after its handshake, without any I/O: queues, credit, batches, chunks, sequence.

Bytes come in by :meth:`Session.feed` and go out by :meth:`Session.frames`; who owns the sockets calls both, and is
called back when there is something to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from runtime.actors import Lane
from runtime.errors import MailboxFull, ProtocolError
from runtime.wire.flow import Allowance, Budget, Window
from runtime.wire.frame import (
    CHUNK_BYTES,
    MAX_BATCH,
    SMALL,
    Reassembler,
    batch_frame,
    grant_frame,
    payload_frames,
    read_grant,
)
from runtime.wire.limits import Limits
from runtime.wire.tensor import Buffer

CONTROL, BULK = Lane  # an attribute of an enum class is looked up slowly, and these are on the way of every frame


class LaneTraffic(msgspec.Struct):
    """What one lane of one link has carried, and what it holds."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    queued_messages: int = 0
    """Waiting here to be sent."""
    queued_bytes: int = 0
    credit_messages: int = 0
    """What the peer still takes."""
    credit_bytes: int = 0
    held_messages: int = 0
    """Received and not consumed."""
    held_bytes: int = 0


class Session:
    """Both lanes of a session, as this node sees them."""

    def __init__(self, limits: Limits, wake: Callable[[Lane], None]) -> None:
        """``wake`` is called when a lane may have frames to send that it did not have before."""
        self._wake = wake
        self._out = {
            CONTROL: _Outlet(limits.queue_messages, limits.control_queue),
            BULK: _Outlet(limits.queue_messages, limits.bulk_queue),
        }
        self._in = {
            CONTROL: _Inlet(limits.control_message, Window(limits.credit_messages, limits.control_credit)),
            BULK: _Inlet(limits.bulk_message, Window(limits.credit_messages, limits.bulk_credit)),
        }
        self._grants_due = True
        """Whether there may be a grant to send: at the beginning there is one for each lane."""

    def put(self, lane: Lane, parts: list[Buffer], size: int, share: int = 1) -> None:
        """Queue a payload of ``size`` bytes, unless the lane's queue is fuller than ``share`` times its bounds.

        Raises:
            MailboxFull: it is.
        """
        outlet = self._out[lane]
        if not outlet.has_room(size, share):
            raise MailboxFull(
                f"{outlet.messages} messages ({outlet.size} bytes) wait on the {lane.name.lower()} lane, "
                "and no more fit"
            )
        outlet.put(parts, size)
        self._wake(lane)

    def at_once(self, lane: Lane, parts: list[Buffer], size: int) -> bytes | None:
        """Return the frame of a small payload that need not be queued, to be sent now; None if it must wait."""
        if self._grants_due:
            return None  # they go first
        return self._out[lane].at_once(parts, size)

    def frames(self, lane: Lane) -> Iterator[Buffer]:
        """Make the frames that may be sent now. Asking for the next one says that the one before has been sent."""
        outlet = self._out[lane]
        while True:
            if lane is CONTROL and self._grants_due:
                # Ahead of messages, and not under credit itself: what frees the peer never waits for the peer.
                yield from self._grants()
            frames = outlet.burst()
            if frames is None:
                return
            yield from frames

    def feed(self, lane: Lane, frame: bytes) -> list[memoryview]:
        """Take a frame; return the payloads that it completes, in order. Each is to be :meth:`consumed`.

        Raises:
            ProtocolError: the frame is malformed, not in sequence, too large, or beyond its credit.
        """
        inlet = self._in[lane]
        if lane is CONTROL and not inlet.reassembler.partial and (found := read_grant(frame)) is not None:
            of, grant = found
            self._out[of].budget.raise_to(grant)
            self._wake(of)
            return []
        return inlet.reassembler.feed(frame)

    def consumed(self, lane: Lane, size: int, messages: int = 1) -> None:
        """Take note that payloads of this size are done with; what the peer may send grows accordingly."""
        inlet = self._in[lane]
        inlet.allowance.consume(size, messages)
        if inlet.allowance.worth_granting:
            self._grants_due = True
            self._wake(CONTROL)

    def has_room(self, lane: Lane) -> bool:
        """Whether at most half of a lane's queue is taken."""
        return self._out[lane].is_half_empty

    def idle(self) -> bool:
        """Whether nothing waits to be sent on either lane."""
        return not any(outlet.messages for outlet in self._out.values())

    def report(self, lane: Lane, traffic: LaneTraffic) -> None:
        """Fill in what a lane holds."""
        outlet, held = self._out[lane], self._in[lane].allowance.held
        left = outlet.budget.left
        traffic.queued_messages, traffic.queued_bytes = outlet.messages, outlet.size
        traffic.credit_messages, traffic.credit_bytes = left.messages, left.size
        traffic.held_messages, traffic.held_bytes = held.messages, held.size

    def _grants(self) -> Iterator[bytes]:
        self._grants_due = False
        for lane, inlet in self._in.items():
            grant = inlet.allowance.due()
            if grant is not None:
                yield grant_frame(lane, grant)


class _Outlet:
    """The sending side of one lane."""

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self.budget = Budget()
        self.messages = 0
        """Payloads that wait, or of which not every frame has been sent."""
        self.size = 0
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[list[Buffer], int]] = deque()
        self._sequence = 0

    @property
    def is_half_empty(self) -> bool:
        return 2 * self.messages <= self._most_messages and 2 * self.size <= self._most_bytes

    def has_room(self, size: int, share: int) -> bool:
        """Whether one more payload is taken: as the bounds say, or because it is the only one."""
        return not self.messages or (
            self.messages < share * self._most_messages and self.size + size <= share * self._most_bytes
        )

    def put(self, parts: list[Buffer], size: int) -> None:
        self._waiting.append((parts, size))
        self.messages += 1
        self.size += size

    def burst(self) -> Iterator[Buffer] | None:
        """Take from the queue what goes next; None if nothing waits, or what waits has no credit."""
        if not self._waiting:
            return None
        parts, size = self._waiting[0]
        if not self.budget.spend(size):
            return None
        del self._waiting[0]
        return self._batch(parts[0], size) if _is_small(parts, size) else self._single(parts, size)

    def at_once(self, parts: list[Buffer], size: int) -> bytes | None:
        """Return the frame of a payload that nothing goes before; None if it has to wait, or is large."""
        if self._waiting or not _is_small(parts, size) or not self.budget.spend(size):
            return None
        sequence, self._sequence = self._sequence, self._sequence + 1
        return batch_frame(sequence, parts)

    def _single(self, parts: list[Buffer], size: int) -> Iterator[Buffer]:
        sequence, self._sequence = self._sequence, self._sequence + 1
        yield from payload_frames(sequence, parts, size)
        self._sent(1, size)

    def _batch(self, first: Buffer, size: int) -> Iterator[Buffer]:
        """Put small payloads that follow one another into one frame."""
        waiting, spend = self._waiting, self.budget.spend
        payloads, total = [first], size
        while waiting and len(payloads) < MAX_BATCH:
            parts, size = waiting[0]
            if not _is_small(parts, size) or total + size > CHUNK_BYTES // 2 or not spend(size):
                break
            waiting.popleft()
            payloads.append(parts[0])
            total += size
        sequence, self._sequence = self._sequence, self._sequence + len(payloads)
        yield batch_frame(sequence, payloads)
        self._sent(len(payloads), total)

    def _sent(self, messages: int, size: int) -> None:
        self.messages -= messages
        self.size -= size


class _Inlet:
    """The receiving side of one lane."""

    def __init__(self, largest: int, window: Window) -> None:
        self.allowance = Allowance(window)
        self.reassembler = Reassembler(largest, self._begin)
        self._next = 0

    def _begin(self, sequence: int, sizes: Sequence[int]) -> None:
        if sequence != self._next:
            raise ProtocolError(f"message {sequence} came where message {self._next} was due")
        self._next += len(sizes)
        self.allowance.receive(sizes)


def _is_small(parts: list[Buffer], size: int) -> bool:
    return size <= SMALL and len(parts) == 1
