"""Frames that have arrived on a connection, on their way to whoever takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from runtime.errors import ProtocolError
from runtime.wire.connection import ConnectionEnded, Take

HIGH = 64
"""Frames that wait when the connection is read no further."""
LOW = 16
"""Frames that wait when it is read again."""
TURN = 64
"""Frames that are handed over in one turn of the event loop; then others get theirs."""


class Inbox:
    """What one connection has received. Frames are taken one by one with :meth:`recv`, or all with :meth:`deliver`."""

    __slots__ = ("_done", "_ended", "_frames", "_loop", "_over", "_pause", "_paused", "_resting", "_resume", "_take")

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """``pause`` and ``resume`` stop the reading of the connection, and begin it again."""
        self._loop = asyncio.get_running_loop()
        self._pause = pause
        self._resume = resume
        self._paused = False
        self._frames: deque[bytes] = deque()
        self._take: Take | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        """Ends the waiting of :meth:`recv`, or that of :meth:`deliver`."""
        self._ended: ConnectionEnded | ProtocolError | None = None
        self._resting = False
        """Whether the next turn of the loop goes on by itself."""
        self._over = False

    def put(self, frame: bytes) -> None:
        """Keep a frame. Call :meth:`pump` once all that is at hand is kept."""
        if not self._over and self._ended is None:
            self._frames.append(frame)

    def end(self, how: ConnectionEnded | ProtocolError) -> None:
        """Say that nothing more will come, and why. The first reason counts."""
        self._ended = self._ended or how
        self.pump()

    async def recv(self) -> bytes:
        """Wait for the next frame; see :meth:`Connection.recv`."""
        while not self._frames:
            if self._ended is not None:
                raise self._ended
            self._done = self._loop.create_future()
            await self._done
        frame = self._frames.popleft()
        self._regulate()
        return frame

    async def deliver(self, take: Take) -> None:
        """Hand over every frame; see :meth:`Connection.deliver`. What comes afterwards is thrown away."""
        self._take = take
        self._done = self._loop.create_future()
        try:
            self.pump()
            await self._done
        finally:
            self._over = True
            self._frames.clear()
            self._regulate()

    def pump(self) -> None:
        """Pass on what is here, as far as one turn of the event loop goes."""
        if self._take is None:
            if (self._frames or self._ended) and not self._done.done():
                self._done.set_result(None)
        elif not self._resting:
            self._hand_over(self._take)
        self._regulate()

    def _hand_over(self, take: Take) -> None:
        handed = 0
        more = True
        while self._frames and more and handed < TURN:
            if self._done.done():
                return  # what was handed over has ended the session
            handed += 1
            try:
                more = take(self._frames.popleft())
            except Exception as error:  # noqa: BLE001 - it is raised again in deliver
                if not self._done.done():
                    self._done.set_exception(error)
                return
        if self._ended is not None and not self._frames:
            if not self._done.done():
                self._done.set_exception(self._ended)
        elif handed > 1 or not more:
            # More may arrive within this turn, and has to wait all the same. A frame by itself needs no such care.
            self._resting = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        self.pump()

    def _regulate(self) -> None:
        """Stop reading where too much waits or others have their turn, and go on where little does.

        uvloop hands over up to 32 reads in one turn if nobody stops it (libuv 1.48, ``uv__read``): megabytes, beside
        which everything else waits for milliseconds.
        """
        waiting = len(self._frames)
        if not self._paused and (waiting >= HIGH or self._resting):
            self._paused = True
            self._pause()
        elif self._paused and waiting <= LOW and not self._resting:
            self._paused = False
            self._resume()
