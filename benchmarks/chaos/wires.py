"""Wires between real nodes that can be cut and joined again: a TCP proxy before each node.

A cut is silent, as where a cable is pulled or a firewall drops packets: no connection closes, new ones are not
answered, and what was sent is not lost but held up, as TCP would send it again once the way is open. A node advertises
its proxy's address, so that all others dial that; who dials is read from the hello of the wire protocol (docs/wire.md).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import msgspec

CHUNK = 64 << 10
START_SECONDS = 10.0


class Wires:
    """The proxies of a cluster. Its methods may be called from any thread but its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._cut: frozenset[tuple[str, str]] = frozenset()
        """Sender and receiver."""
        self._changed = asyncio.Event()
        """Set, and replaced, when :attr:`_cut` changes."""
        self._servers: list[asyncio.Server] = []
        self._pumps: set[asyncio.Task[None]] = set()
        """Tasks that each serve one connection."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    def settings(self, node: str) -> tuple[str, ...]:
        """Return the settings of a node that is to be reached through a proxy of its own, which is there from now on.

        They hold for each life of the node, one after the other.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        opened = asyncio.run_coroutine_threadsafe(self._listen(node, port), self._loop)
        return f"cluster.listen=127.0.0.1:{port}", f"cluster.advertise=127.0.0.1:{opened.result(START_SECONDS)}"

    def cut(self, *ways: tuple[str, str]) -> None:
        """Let nothing pass from the first to the second node of each pair."""
        self._set(self._cut | set(ways))

    def cut_off(self, node: str, others: Iterable[str]) -> None:
        """Let nothing pass between a node and others, either way."""
        self.cut(*(way for other in others if other != node for way in ((node, other), (other, node))))

    def heal(self) -> None:
        """Let everything pass."""
        self._set(frozenset())

    # -- on the loop ------------------------------------------------------------------------------------------------

    def _set(self, cut: frozenset[tuple[str, str]]) -> None:
        def change() -> None:
            self._cut = cut
            self._changed.set()
            self._changed = asyncio.Event()

        self._loop.call_soon_threadsafe(change)

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _listen(self, node: str, port: int) -> int:
        """Put a proxy before a node that listens at ``port``, and return the proxy's own port."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - asyncio runs this as a task
            self._pumps.add(task)
            try:
                await self._serve(node, port, reader, writer)
            except (OSError, EOFError):
                return  # one of the two is gone, and the other finds its connection closed
            finally:
                self._pumps.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(self, node: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps: list[asyncio.Task[None]] = []
        try:
            target_writer.write(await reader.readuntil(b"\r\n\r\n"))
            writer.write(await target_reader.readuntil(b"\r\n\r\n"))
            hello, dialler = await _hello(reader)
            await self._pass(dialler, node)
            target_writer.write(hello)
            pumps += [
                asyncio.create_task(self._pump(dialler, node, reader, target_writer)),
                asyncio.create_task(self._pump(node, dialler, target_reader, writer)),
            ]
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            target_writer.close()

    async def _pump(
        self, sender: str, receiver: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one direction of a connection until its sender closes it and the receiver may know."""
        while chunk := await reader.read(CHUNK):
            await self._pass(sender, receiver)
            writer.write(chunk)
            await writer.drain()
        await self._pass(sender, receiver)

    async def _pass(self, sender: str, receiver: str) -> None:
        while (sender, receiver) in self._cut:
            await self._changed.wait()


async def _hello(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Read the first frame of a WebSocket client; return it, and the name of the node that it is from.

    RFC 6455, 5.2: two bytes, a length of two bytes more where it is over 125, four of mask, the payload.
    """
    frame = await reader.readexactly(2)
    length = frame[1] & 0x7F
    if length == 126:
        frame += await reader.readexactly(2)
        length = int.from_bytes(frame[2:4])
    mask = await reader.readexactly(4)
    masked = await reader.readexactly(length)
    hello = msgspec.msgpack.decode(bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked)))
    return frame + mask + masked, str(hello[6][0])
