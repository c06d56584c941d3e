"""Connections that ask for nothing cost the node little, and not for long."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator

import anyio
import anyio.abc
import httpx
import pytest

from runtime.http import listener
from tests.http.scripted import ScriptedEngine, serving


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(listener, "_MOST_CONNECTIONS", 3)
    monkeypatch.setattr(listener, "_HEAD_SECONDS", 0.5)
    async with serving(ScriptedEngine()) as node:
        yield node.port


async def _read_all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    received = b""
    with anyio.fail_after(10):
        async for piece in stream:
            received += piece
    return received


async def test_one_connection_too_many_is_told_so_and_closed(port: int) -> None:
    idle = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(3)]
    async with await anyio.connect_tcp("127.0.0.1", port) as refused:
        answer = await _read_all(refused)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\nthis node has too many connections\n")
    for each in idle:
        await each.aclose()


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
async def test_a_client_that_never_finishes_its_request_is_hung_up_on(port: int, head: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as silent:
        if head:
            await silent.send(head)
        assert await _read_all(silent) == b""
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_an_answered_connection_that_dribbles_the_next_request_is_hung_up_on(port: int) -> None:
    async with await anyio.connect_tcp("127.0.0.1", port) as slow:
        await slow.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await slow.receive()).startswith(b"HTTP/1.1 200")
        await slow.send(b"GET")
        assert b"HTTP/1.1" not in await _read_all(slow)


def test_connections_leave_half_of_the_open_files_to_the_rest_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert listener.most_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**20, 2**20))
    assert listener.most_connections() == 1024
