from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from runtime.wire.rfc6455 import MessageReader, MessageWriter

LARGEST = 70_000

Event = tuple[Opcode, bytes, bool]


class Reading:
    """A reader, and a library's parser that is left what the reader does not take."""

    def __init__(self, side: Side) -> None:
        self.protocol = Protocol(side, max_size=LARGEST)
        self.events: list[Event] = []
        self.taken = 0
        self.reader = MessageReader(masked=side is Side.SERVER, largest=LARGEST, take=self._take, leave=self._leave)
        self.reader.begin()

    def feed(self, data: bytes) -> None:
        while data:
            room = self.reader.room()
            written = min(len(room), len(data))
            room[:written] = data[:written]
            data = data[written:]
            self.reader.arrived(written)

    def _take(self, message: bytes) -> None:
        self.taken += 1
        self.events.append((Opcode.BINARY, message, True))

    def _leave(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        self.events += _events(self.protocol)
        if self.protocol.state is not State.OPEN:
            self.reader.stop()


def _events(protocol: Protocol) -> list[Event]:
    frames = protocol.events_received()
    assert all(isinstance(frame, Frame) for frame in frames)
    return [(frame.opcode, bytes(frame.data), frame.fin) for frame in frames if isinstance(frame, Frame)]


def frames(side: Side) -> st.SearchStrategy[bytes]:
    """Frames as the side may get them, most of them sound."""
    masked = side is Side.SERVER
    data = st.integers(0, 130) | st.integers(65_500, LARGEST + 2)

    def serialize(opcode: Opcode, size: int, fin: bool, wrongly: bool) -> bytes:
        if opcode >= Opcode.CLOSE:
            size, fin = size % 126, True
        content = random.Random(size).randbytes(size)  # noqa: S311 - to be repeated, not a secret
        if opcode is Opcode.CLOSE:
            content = b"\x03\xe8bye"
        return Frame(opcode, content, fin).serialize(mask=masked is not wrongly)

    whole = st.builds(serialize, st.just(Opcode.BINARY), data, st.just(True), st.just(False))
    other = st.builds(
        serialize,
        st.sampled_from([Opcode.PING, Opcode.PONG, Opcode.BINARY, Opcode.CONT, Opcode.TEXT, Opcode.CLOSE]),
        data,
        st.booleans(),
        st.sampled_from([False, False, False, True]),
    )
    return whole | whole | other


@pytest.mark.parametrize("side", list(Side))
@given(chosen=st.data())
def test_what_is_taken_and_what_is_left_is_what_the_library_reads_of_the_whole_however_it_is_cut(
    side: Side, chosen: st.DataObject
) -> None:
    stream = b"".join(chosen.draw(st.lists(frames(side), max_size=6)))
    if stream and chosen.draw(st.booleans()):
        changed = bytearray(stream)
        changed[chosen.draw(st.integers(0, min(len(stream), 400) - 1))] = chosen.draw(st.integers(0, 255))
        stream = bytes(changed)
    cuts = sorted(chosen.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reading = Reading(side)
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reading.feed(stream[start:stop])
    alone = Protocol(side, max_size=LARGEST)
    alone.receive_data(stream)
    assert reading.events == _events(alone)
    assert reading.protocol.state == alone.state
    assert reading.protocol.close_sent == alone.close_sent
    assert reading.protocol.data_to_send() == alone.data_to_send() or side is Side.CLIENT, "only its masks differ"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, LARGEST])
@pytest.mark.parametrize("side", list(Side))
def test_the_library_and_the_reader_read_what_the_writer_writes(side: Side, size: int) -> None:
    messages = [bytes([number]) * size for number in range(3)]
    writer = MessageWriter(masks=side is Side.SERVER)
    stream = b"".join(writer.frame(memoryview(message)) for message in messages)
    reading, library = Reading(side), Protocol(side, max_size=LARGEST)
    reading.feed(stream)
    library.receive_data(stream)
    assert reading.events == _events(library) == [(Opcode.BINARY, message, True) for message in messages]
    assert reading.taken == len(messages)


def test_every_message_is_masked_with_a_key_of_its_own() -> None:
    writer = MessageWriter(masks=True)
    keys = {writer.frame(b"\0" * 8)[2:6] for _ in range(3000)}
    assert len(keys) > 2990, "four random bytes are seldom drawn twice"


def test_messages_follow_a_message_in_fragments_and_a_ping_between_them() -> None:
    reading = Reading(Side.CLIENT)
    parts = [
        Frame(Opcode.BINARY, b"1", True),
        Frame(Opcode.BINARY, b"2", False),
        Frame(Opcode.PING, b"?"),
        Frame(Opcode.CONT, b"3", True),
        Frame(Opcode.BINARY, b"4", True),
    ]
    for part in parts:
        reading.feed(part.serialize(mask=False))
    assert reading.events == [(part.opcode, part.data, part.fin) for part in parts]
    assert reading.taken == 2


def test_a_message_that_is_too_large_is_refused_before_it_has_come() -> None:
    reading = Reading(Side.CLIENT)
    reading.feed(Frame(Opcode.BINARY, bytes(LARGEST + 1)).serialize(mask=False)[:100])
    assert reading.protocol.close_sent is not None
    assert reading.protocol.close_sent.code == CloseCode.MESSAGE_TOO_BIG


def test_there_is_room_for_the_largest_message_wherever_the_one_before_has_ended() -> None:
    writer, reading = MessageWriter(masks=True), Reading(Side.SERVER)
    sizes = [LARGEST, 1, LARGEST - 1, 30_000, LARGEST, 50_000, LARGEST]
    for size in sizes:
        reading.feed(writer.frame(bytes(size)))
    stream = b"".join(writer.frame(bytes(size)) for size in sizes)
    for at in range(0, len(stream), 33_333):
        reading.feed(stream[at : at + 33_333])
    assert [len(data) for _, data, _ in reading.events] == sizes * 2
    assert reading.taken == 2 * len(sizes)
