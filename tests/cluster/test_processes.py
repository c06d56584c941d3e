from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime.actors import ActorRef, Down
from runtime.cluster import DetectorSettings, PeerState
from runtime.wire import Tensor
from tests.cluster.nodes import ClusterNode, Seeds
from tests.wire.loopback import Observer, eventually
from tests.wire.messages import Double, Number, Store

ROOT = Path(__file__).parents[2]
DOUBLER = ActorRef("b", "/doubler")

pytestmark = pytest.mark.slow


@asynccontextmanager
async def process(name: str, port: int, *seeds: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A node in its own process, and its address."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.cluster.node_process",
        name,
        str(port),
        *seeds,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        assert started.stdout is not None
        address = (await asyncio.wait_for(started.stdout.readline(), 30)).decode().strip()
        yield started, address
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGCONT)
            started.kill()
        await started.wait()


@asynccontextmanager
async def observer_of(address: str) -> AsyncIterator[ClusterNode]:
    """A node in this process that is linked to the other."""
    node = ClusterNode("a", Seeds(frozenset({address})), DetectorSettings())
    try:
        await node.network.listen("127.0.0.1", 0)
        await eventually(lambda: node.told("b"))
        yield node
    finally:
        await node.stop()


async def test_a_killed_process_is_one_down_at_once_and_its_return_is_noticed() -> None:
    async with process("b", 0) as (first, address), observer_of(address) as a:
        assert await a.system.ask(DOUBLER, Double(4), 5) == Number(8)
        heard: list[Down] = []
        a.system.spawn(lambda: Observer(DOUBLER, heard), "observer")
        await a.system.ask(DOUBLER, Double(4), 5)
        first.kill()
        killed = time.monotonic()
        await eventually(lambda: heard)
        assert time.monotonic() - killed < 1
        assert heard == [Down(DOUBLER, "noconnection")]
        gone = a.membership.member("b")
        assert gone is not None
        assert gone.reason == "the connection was lost"
        async with process("b", int(address.rpartition(":")[2])):
            await eventually(lambda: a.linked() == ["b"])
            assert await a.system.ask(DOUBLER, Double(6), 5) == Number(12)
        assert heard == [Down(DOUBLER, "noconnection")]


async def test_a_large_tensor_reaches_another_process_whole() -> None:
    async with process("b", 0) as (_, address), observer_of(address) as a:
        tensor = Tensor("bfloat16", (4, 1 << 20), os.urandom(1 << 23))
        assert await a.system.ask(DOUBLER, Store(tensor), 30) == Number(1 << 23)


async def test_a_process_that_is_stopped_for_a_moment_is_not_down() -> None:
    async with process("b", 0) as (other, address), observer_of(address) as a:
        other.send_signal(signal.SIGSTOP)
        asking = asyncio.create_task(a.system.ask(DOUBLER, Double(1), 10))
        await asyncio.wait([asking], timeout=2.5)
        other.send_signal(signal.SIGCONT)
        assert await asking == Number(2)
        assert [info.state for info in a.changes] == [PeerState.UP]
