from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from runtime.errors import ConfigError
from runtime.wire.dialling import DialState
from runtime.wire.tls import client_context, server_context
from runtime.wire.websocket import WebSockets
from tests.wire.loopback import FAST, Node, eventually
from tests.wire.messages import Double, Doubler, Number


class Papers:
    """A certificate with its key, and the authority that it is from, as files."""

    def __init__(self, folder: Path, authority: trustme.CA, host: str = "127.0.0.1") -> None:
        folder.mkdir()
        self.cert, self.key, self.ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        issued = authority.issue_cert(host)
        issued.private_key_pem.write_to_path(self.key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)
        authority.cert_pem.write_to_path(self.ca)

    def medium(self, *, mutual: bool = False) -> WebSockets:
        return WebSockets(
            FAST,
            server_context(self.cert, self.key, self.ca, mutual=mutual),
            client_context(self.cert, self.key, self.ca),
        )


@asynccontextmanager
async def two(listening: WebSockets, dialling: WebSockets) -> AsyncIterator[tuple[Node, Node]]:
    a, b = Node("a", medium=listening), Node("b", medium=dialling)
    try:
        b.dial(await a.network.listen("127.0.0.1", 0))
        yield a, b
    finally:
        await b.stop()
        await a.stop()


async def refused(a: Node, b: Node) -> str:
    """Wait until the dialling has failed; return why."""
    await eventually(lambda: b.network.dials()[0].state is DialState.FAILED)
    assert (a.linked(), b.linked()) == ([], [])
    return str(b.network.dials()[0].reason)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("mutual", [False, True])
async def test_nodes_with_certificates_talk_over_tls(tmp_path: Path, authority: trustme.CA, mutual: bool) -> None:
    a_papers, b_papers = Papers(tmp_path / "a", authority), Papers(tmp_path / "b", authority)
    async with two(a_papers.medium(mutual=mutual), b_papers.medium(mutual=mutual)) as (a, b):
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        ref = a.system.spawn(Doubler, "doubler")
        assert await b.system.ask(ref, Double(2), 5) == Number(4)


async def test_what_travels_cannot_be_read(tmp_path: Path, authority: trustme.CA) -> None:
    medium = Papers(tmp_path / "a", authority).medium()
    seen = bytearray()

    async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", int(a.address.rpartition(":")[2]))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while chunk := await source.read(65536):
                seen.extend(chunk)
                target.write(chunk)
            target.close()

        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)
        back.close()
        writer.close()

    a, b = Node("node-that-listens", medium=medium), Node("node-that-dials", medium=medium)
    await a.network.listen("127.0.0.1", 0)
    async with await asyncio.start_server(tap, "127.0.0.1", 0) as server:
        b.dial(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await eventually(lambda: b.linked() == ["node-that-listens"])
        await b.stop()
    await a.stop()
    assert len(seen) > 1000
    assert b"node-that" not in seen
    assert b"mlx-actor-runtime" not in seen


async def test_a_node_of_another_authority_is_not_believed(tmp_path: Path, authority: trustme.CA) -> None:
    ours, theirs = Papers(tmp_path / "a", authority), Papers(tmp_path / "b", trustme.CA())
    async with two(ours.medium(), theirs.medium()) as (a, b):
        assert "certificate verify failed" in await refused(a, b)


async def test_a_certificate_for_another_host_is_not_believed(tmp_path: Path, authority: trustme.CA) -> None:
    papers = Papers(tmp_path / "a", authority, host="somewhere.example")
    async with two(papers.medium(), papers.medium()) as (a, b):
        assert "certificate verify failed" in await refused(a, b)


async def test_with_mutual_tls_a_dialler_without_a_certificate_of_ours_is_turned_away(
    tmp_path: Path, authority: trustme.CA
) -> None:
    ours, theirs = Papers(tmp_path / "a", authority), Papers(tmp_path / "b", trustme.CA())
    theirs.ca.write_bytes(ours.ca.read_bytes())
    async with two(ours.medium(mutual=True), theirs.medium()) as (a, b):
        await refused(a, b)
    async with two(ours.medium(mutual=False), theirs.medium()) as (a, b):
        await eventually(lambda: a.linked() == ["b"])


async def test_a_node_without_tls_and_one_with_it_are_not_linked(tmp_path: Path, authority: trustme.CA) -> None:
    medium = Papers(tmp_path / "a", authority).medium()
    async with two(medium, WebSockets(FAST)) as (a, b):
        await refused(a, b)
    async with two(WebSockets(FAST), medium) as (a, b):
        await refused(a, b)


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    papers, other = Papers(tmp_path / "a", authority), Papers(tmp_path / "b", authority)
    missing = tmp_path / "missing.pem"
    with pytest.raises(ConfigError, match=r"cluster\.tls_cert is .*missing\.pem, which cannot be read: No such file"):
        client_context(missing, papers.key, None)
    with pytest.raises(ConfigError, match=r"cluster\.tls_key is .*cannot be used: KEY_VALUES_MISMATCH"):
        client_context(papers.cert, other.key, None)
    with pytest.raises(ConfigError, match=r"cluster\.tls_ca is .*key\.pem, which cannot be used"):
        client_context(papers.cert, papers.key, papers.key)
    with pytest.raises(ConfigError, match=r"cluster\.tls_mutual needs cluster\.tls_ca"):
        server_context(papers.cert, papers.key, None, mutual=True)
