"""Clients that all hang up at once."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from runtime.testing.processes import NodeProcess, eventually

BEGIN_SECONDS = 60.0
FREE_SECONDS = 30.0
POLL_SECONDS = 0.001


def storm(node: NodeProcess, body: dict[str, object], clients: int) -> float:
    """Begin so many streams, close all their connections, and return the seconds until no generation is left.

    Args:
        node: the one that drives the model, so that what it tells is not on its way yet.
        body: a streamed completion that lasts longer than this takes.
        clients: no more than the node runs at once.
    """
    address = urlsplit(node.url)
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((str(address.hostname), address.port or 80), BEGIN_SECONDS))
            for _ in range(clients)
        ]
        for connection in connections:
            connection.sendall(head.encode() + content)
        for connection in connections:
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("a stream has not begun")
        eventually(lambda: node.active() == clients, "all streams are under way", BEGIN_SECONDS)
    hung_up = time.monotonic()
    while node.active():
        if time.monotonic() - hung_up > FREE_SECONDS:
            raise TimeoutError(f"{node.active()} of {clients} generations go on {FREE_SECONDS:g} s after all hung up")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - hung_up
