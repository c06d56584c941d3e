from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from runtime.errors import ConfigError
from runtime.wire.connection import ABNORMAL, GOING_AWAY, POLICY, Connection, ConnectionEnded, Listener
from runtime.wire.memory import Route, Weather, Wires
from tests.wire.loopback import Node, eventually
from tests.wire.messages import Double, Doubler, Number


class Held(Weather):
    """Lets nothing through until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def carry(self, route: Route, size: int, arrive: Callable[[], None]) -> None:
        self.waiting.append(arrive)


@asynccontextmanager
async def connected(wires: Wires) -> AsyncIterator[tuple[Connection, Connection, Listener]]:
    """Both ends of a connection from host a to host b, and the listener it came in by."""
    far: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def serve(connection: Connection) -> None:
        far.set_result(connection)
        await connection.wait_closed()

    listener = await wires.medium("b").listen("", 0, serve, lambda host: host == "a")
    near = await wires.medium("a").dial("b", listener.port)
    try:
        yield near, await far, listener
    finally:
        await near.close()
        await listener.close()


async def test_two_nodes_talk_within_the_process_as_they_do_over_sockets() -> None:
    wires = Wires()
    a, b = Node("a", medium=wires.medium("a")), Node("b", medium=wires.medium("b"))
    address = await b.network.listen("b", 0)
    a.dial(address)
    await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
    ref = b.system.spawn(Doubler, "doubler")
    assert await a.system.ask(ref, Double(21), 5) == Number(42)
    await b.stop()
    assert a.downs == [("b", "the node shut down")]
    await a.stop()


async def test_frames_arrive_in_order_whatever_the_weather_lets_through_first() -> None:
    weather = Held()
    async with connected(Wires(weather)) as (near, far, _):
        for frame in (b"1", b"2", b"3"):
            await near.send(frame)
        for arrive in reversed(weather.waiting):
            arrive()
            arrive()
        assert [await far.recv() for _ in range(3)] == [b"1", b"2", b"3"]


async def test_a_sender_waits_while_the_reader_has_a_window_to_read() -> None:
    async with connected(Wires(window=10)) as (near, far, _):
        await near.send(bytes(6))
        await near.send(bytes(6))
        third = asyncio.ensure_future(near.send(bytes(6)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not third.done()
        await far.recv()
        await third


async def test_a_goodbye_comes_after_what_was_sent_before_it() -> None:
    async with connected(Wires()) as (near, far, _):
        await near.send(b"last words")
        await near.close(POLICY, "no more")
        assert await far.recv() == b"last words"
        with pytest.raises(ConnectionEnded, match="no more") as ended:
            await far.recv()
        assert ended.value.code == POLICY
        with pytest.raises(ConnectionEnded):
            await far.send(b"too late")


async def test_a_listener_that_closes_says_goodbye_and_is_dialled_in_vain() -> None:
    wires = Wires()
    async with connected(wires) as (near, _, listener):
        await listener.close()
        with pytest.raises(ConnectionEnded) as ended:
            await near.recv()
        assert ended.value.code == GOING_AWAY
        with pytest.raises(ConnectionRefusedError):
            await wires.medium("a").dial("b", listener.port)


async def test_a_killed_host_is_heard_of_and_one_without_power_is_not() -> None:
    wires = Wires()
    async with connected(wires) as (near, _, _):
        wires.crash("b")
        with pytest.raises(ConnectionEnded) as ended:
            await near.recv()
        assert ended.value.code == ABNORMAL
    async with connected(wires) as (near, _, _):
        wires.crash("b", silently=True)
        await near.send(b"into the void")
        hearing = asyncio.ensure_future(near.recv())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not hearing.done()
        hearing.cancel()


async def test_a_port_is_taken_once() -> None:
    wires = Wires()
    async with connected(wires) as (_, far, listener):
        with pytest.raises(ConfigError, match="in use"):
            await wires.medium("b").listen("", listener.port, lambda connection: connection.close(), lambda host: True)
        assert far.host == "a"
