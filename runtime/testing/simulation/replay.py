"""Attempts at duplication: what a node sent over a connection, sent once more over another.

TCP delivers nothing twice. Whoever wants a message to arrive twice has to open a connection and repeat what was said
on an earlier one, from the handshake on; a network of many hands (or an intruder) can do that.
"""

from __future__ import annotations

from typing import NamedTuple

from runtime.wire.connection import NORMAL, Admit, Connection, ConnectionEnded, Listener, Medium, Serve
from runtime.wire.tensor import Buffer

MOST_FRAMES = 64
"""Frames of a connection that are remembered."""
MOST_CONNECTIONS = 16
"""Connections to one address that are remembered."""


class Recording(NamedTuple):
    """What the dialler of one connection sent."""

    host: str
    port: int
    frames: list[bytes]


class Recorder:
    """Remembers what nodes say on the connections that they dial."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    def tap(self, medium: Medium) -> Medium:
        """Return a medium that does what this one does, and is listened to."""
        return _Tapped(medium, self)

    def record(self, host: str, port: int) -> Recording:
        """Begin to remember a connection, and forget the oldest if there are too many to its host."""
        same = [recording for recording in self.recordings if recording.host == host]
        if len(same) >= MOST_CONNECTIONS:
            self.recordings.remove(same[0])
        recording = Recording(host, port, [])
        self.recordings.append(recording)
        return recording


async def replay(recording: Recording, medium: Medium) -> int:
    """Say again what was said, over a new connection, and hang up; return how many frames were taken.

    Raises:
        OSError: nobody listens there any more.
    """
    connection = await medium.dial(recording.host, recording.port)
    sent = 0
    try:
        for frame in recording.frames:
            await connection.send(frame)
            sent += 1
        while True:  # the other side is given the time to act on it
            await connection.recv()
    except ConnectionEnded:
        return sent
    finally:
        await connection.close()


class _Tapped(Medium):
    def __init__(self, medium: Medium, recorder: Recorder) -> None:
        self._medium = medium
        self._recorder = recorder

    async def dial(self, host: str, port: int) -> Connection:
        connection = await self._medium.dial(host, port)
        return _TappedConnection(connection, self._recorder.record(host, port).frames)

    async def listen(self, host: str, port: int, serve: Serve, admit: Admit) -> Listener:
        return await self._medium.listen(host, port, serve, admit)


class _TappedConnection(Connection):
    def __init__(self, connection: Connection, frames: list[bytes]) -> None:
        self.host = connection.host
        self._connection = connection
        self._frames = frames

    async def send(self, frame: Buffer) -> None:
        if len(self._frames) < MOST_FRAMES:
            self._frames.append(bytes(frame))
        await self._connection.send(frame)

    async def recv(self) -> bytes:
        return await self._connection.recv()

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        await self._connection.close(code, reason)

    async def wait_closed(self) -> None:
        await self._connection.wait_closed()
