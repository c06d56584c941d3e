"""WebSocket listeners close whatever they accepted, in whichever state it is."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import warnings
from contextlib import ExitStack

import pytest

from runtime.wire.connection import Connection
from runtime.wire.limits import Limits
from runtime.wire.websocket import WebSockets


async def _serve(connection: Connection) -> None:
    await connection.recv()


async def _close_after(turns: int, said: bytes, clients: ExitStack) -> list[socket.socket]:
    """Connect, and close the listener so many turns of the event loop later; return the clients."""
    listener = await WebSockets(Limits(handshake=60.0)).listen("127.0.0.1", 0, _serve, lambda host: True)
    dialled = [clients.enter_context(socket.create_connection(("127.0.0.1", listener.port), 5)) for _ in range(3)]
    for client in dialled:
        client.sendall(said)
    for _ in range(turns):
        await asyncio.sleep(0)
    await listener.close()
    return dialled


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n"], ids=["silent", "begun"])
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_is_accepted_while_the_listener_closes_is_closed(turns: int, said: bytes) -> None:
    gc.collect()
    with ExitStack() as clients, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begun = time.monotonic()
        dialled = asyncio.run(_close_after(turns, said, clients))
        # It does not wait for the openings, which have a minute.
        assert time.monotonic() - begun < 30
        gc.collect()
        assert [str(each.message) for each in told] == []
        for client in dialled:
            assert _is_closed(client)


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
