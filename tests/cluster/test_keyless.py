"""A node without a key trusts whatever it dials, so it dials nothing but this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from loguru import logger

from runtime.config.load import load_settings
from runtime.keyless import LoopbackOnly
from runtime.node import Node
from runtime.spi import Discovery
from runtime.spi.loader import load_plugins


class Scripted(Discovery):
    """Yields what it is told to, and waits."""

    def __init__(self, *found: set[str]) -> None:
        self._found = found

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        for found in self._found:
            yield frozenset(found)
        await asyncio.Event().wait()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="ERROR", format="{message}")
    yield lines
    logger.remove(sink)


async def test_other_machines_are_refused_and_named_once(logged: list[str]) -> None:
    near, far = {"127.0.0.1:9001", "[::1]:9002", "localhost:9003"}, {"10.1.2.3:9001", "studio.local:9001"}
    found = LoopbackOnly(Scripted(near | far, far, near)).addresses()
    assert [await anext(found) for _ in range(3)] == [near, set(), near]
    assert len(logged) == 2
    assert "10.1.2.3:9001 is not dialled" in logged[0]
    assert "cluster.key" in logged[0]


@pytest.mark.parametrize("key", [None, "a secret that all nodes share"])
async def test_a_node_dials_other_machines_with_a_key_only(key: str | None) -> None:
    environ = {"RUNTIME_PLUGINS__STATIC__PEERS": '["10.1.2.3:9001", "127.0.0.1:9001"]'}
    if key is not None:
        environ["RUNTIME_CLUSTER__KEY"] = key
    plugins = load_plugins()
    node = Node(load_settings(environ=environ, plugins=plugins), plugins, lambda _: None)
    dialled = await anext(node.membership._discovery.addresses())
    assert ("10.1.2.3:9001" in dialled) == (key is not None)
    assert "127.0.0.1:9001" in dialled
