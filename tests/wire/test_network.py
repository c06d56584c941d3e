from __future__ import annotations

import asyncio
import contextlib
import secrets
from functools import partial

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame
from websockets.protocol import Event
from websockets.typing import Origin
from websockets.uri import parse_uri

from runtime.actors import ActorRef, ActorSystem, Down, Gone, Lane
from runtime.errors import (
    ActorStopped,
    ConfigError,
    MailboxFull,
    PeerUnreachable,
    TooLarge,
)
from runtime.wire import DialState, Network, Tensor
from runtime.wire.connection import NORMAL, POLICY, Connection, ConnectionEnded
from runtime.wire.frame import Grant, batch_frame, grant_frame
from runtime.wire.handshake import Dialler, Identity
from runtime.wire.limits import KIB, MIB
from runtime.wire.opening import READY, introduce
from runtime.wire.rfc6455 import MessageWriter
from runtime.wire.tensor import Buffer
from runtime.wire.websocket import SUBPROTOCOL
from tests.wire.loopback import DEADLINE, FAST, Node, Observer, eventually, log_lines, nodes, pair
from tests.wire.messages import Double, Doubler, Hold, Number, Store


class Bare(Connection):
    """A socket of the library's, to carry out a handshake over."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, frame: Buffer) -> None:
        await self.socket.send(frame)

    async def recv(self) -> bytes:
        try:
            return await self.socket.recv(decode=False)
        except ConnectionClosed as closed:
            raise ConnectionEnded from closed

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        await self.socket.close(code, reason)

    async def wait_closed(self) -> None:
        await self.socket.wait_closed()


async def impostor(node: Node, lane: Lane, session: bytes, name: str = "z") -> ClientConnection:
    """Dial a node as a peer that knows the key, and may then do as it likes."""
    socket = await connect(f"ws://{node.address}/", subprotocols=[SUBPROTOCOL], compression=None, proxy=None)
    await introduce(Bare(socket), Identity(name, 1, session[:8], ""), b"", lane, session)
    return socket


async def _hear_out(socket: ClientConnection) -> None:
    """Receive until the other side has closed."""
    while True:
        await socket.recv()


def _settled(*everyone: Node) -> bool:
    """Whether each has found itself and the other at the addresses that it dials."""
    both = {DialState.LINKED, DialState.SELF}
    return all({status.state for status in node.network.dials()} == both for node in everyone)


def _is_linked_to(node: Node, instance: bytes) -> bool:
    return [peer.instance for peer in node.network.peers()] == [instance]


async def test_an_ask_is_answered_by_an_actor_on_another_node() -> None:
    async with pair() as (a, b):
        doubler = b.system.spawn(Doubler, "doubler")
        assert await a.system.ask(doubler, Double(21), 5) == Number(42)
        assert await a.system.ask(ActorRef("b", "/doubler"), Double(4), 5) == Number(8)


async def test_tells_arrive_in_order() -> None:
    async with pair() as (a, b):
        actor = Doubler()
        ref = b.system.spawn(lambda: actor, "doubler")
        for value in range(500):
            a.system.tell(ref, Number(value))
        await eventually(lambda: len(actor.numbers) == 500)
        assert actor.numbers == list(range(500))


async def test_an_ask_of_an_actor_that_is_not_there_fails_with_the_reason() -> None:
    async with pair() as (a, _):
        with pytest.raises(ActorStopped, match="no actor lives at b/nobody"):
            await a.system.ask(ActorRef("b", "/nobody"), Double(1), 5)


async def test_a_node_without_a_link_is_unreachable() -> None:
    async with nodes("a") as (a,):
        with pytest.raises(PeerUnreachable, match="no link to node c"):
            a.system.tell(ActorRef("c", "/x"), Number(1))


async def test_control_asks_are_answered_while_a_large_tensor_travels_and_it_arrives_whole() -> None:
    async with pair() as (a, b):
        actor = Doubler()
        ref = b.system.spawn(lambda: actor, "doubler")
        quick = b.system.spawn(Doubler, "quick")
        block = secrets.token_bytes(MIB)
        tensor = Tensor("bfloat16", (64, MIB // 2), block * 64)
        storing = asyncio.create_task(a.system.ask(ref, Store(tensor), 60))
        asked = 0
        while not storing.done():
            await a.system.ask(quick, Double(asked), 5)
            asked += 1
        assert await storing == Number(64 * MIB)
        assert asked >= 3
        assert actor.stored == [tensor]
        assert (actor.stored[0].dtype, actor.stored[0].shape) == ("bfloat16", (64, MIB // 2))
        traffic = a.network.traffic("b")
        assert traffic[Lane.BULK].bytes_out >= 64 * MIB
        assert traffic[Lane.CONTROL].bytes_out < MIB
        assert traffic[Lane.BULK].queued_bytes == 0


async def test_the_end_of_a_watched_actor_is_heard_once_on_the_other_node() -> None:
    async with pair() as (a, b):
        doubler = b.system.spawn(Doubler, "doubler")
        heard: list[Down] = []
        a.system.spawn(lambda: Observer(doubler, heard), "observer")
        await a.system.ask(doubler, Double(1), 5)
        b.system.stop(doubler)
        await eventually(lambda: heard)
        await b.stop()
        await eventually(lambda: a.downs)
        assert heard == [Down(doubler, "normal")]


async def test_a_lost_link_is_one_down_for_every_watched_actor_and_fails_what_was_asked() -> None:
    async with pair() as (a, b):
        doubler = b.system.spawn(Doubler, "doubler")
        heard: list[Down] = []
        a.system.spawn(lambda: Observer(doubler, heard), "observer")
        asking = asyncio.create_task(a.system.ask(doubler, Hold(), 60))
        await a.system.ask(doubler, Double(1), 5)
        a.dial()
        a.network.disconnect("b", "the test says so")
        with pytest.raises(PeerUnreachable, match="node b was lost"):
            await asking
        await eventually(lambda: heard and b.downs)
        assert heard == [Down(doubler, "noconnection")]
        assert a.downs == [("b", "the test says so")]
        assert b.downs == [("a", "the node closed the link: the test says so")]


async def test_two_nodes_that_dial_each_other_at_once_have_one_link_and_it_never_flaps() -> None:
    for _ in range(10):
        async with nodes("a", "b") as (a, b):
            a.dial(b.address, a.address)
            b.dial(a.address, b.address)
            await eventually(partial(_settled, a, b))
            assert (a.linked(), b.linked()) == (["b"], ["a"])
            ref = b.system.spawn(Doubler, "doubler")
            assert await a.system.ask(ref, Double(1), 5) == Number(2)
            assert (len(a.ups), len(b.ups), a.downs, b.downs) == (1, 1, [], [])


async def test_a_node_that_returns_at_its_address_is_linked_again() -> None:
    async with nodes("a", "b") as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked())
        address = b.address
        await b.stop()
        await eventually(lambda: a.downs == [("b", "the node shut down")])
        again = Node("b")
        await again.network.listen("127.0.0.1", int(address.rpartition(":")[2]))
        try:
            await eventually(lambda: a.linked() == ["b"])
            ref = again.system.spawn(Doubler, "doubler")
            assert await a.system.ask(ref, Double(5), 5) == Number(10)
            assert len({peer.instance for peer in a.ups}) == 2
        finally:
            await again.stop()


async def test_a_node_with_another_key_is_refused_and_both_sides_say_so() -> None:
    async with log_lines("WARNING") as lines, nodes("a", key=b"one") as (a,):
        stranger = Node("b", key=b"two")
        try:
            stranger.dial(a.address)
            await eventually(lambda: stranger.network.dials()[0].state is DialState.FAILED)
            (status,) = stranger.network.dials()
            assert status.lasting
            assert status.reason is not None
            assert "cluster key does not match" in status.reason
            assert (a.linked(), stranger.linked()) == ([], [])
        finally:
            await stranger.stop()
        assert (
            sum("a connection from 127.0.0.1 is refused: the cluster key does not match" in line for line in lines) == 1
        )
        assert sum(f"node at {a.address} is not reached: the cluster key" in line for line in lines) == 1


async def test_two_nodes_with_one_name_are_not_both_let_in() -> None:
    async with nodes("a", "b", "b") as (a, first, second):
        first.dial(a.address)
        await eventually(lambda: a.linked() == ["b"])
        second.dial(a.address, first.address)
        await eventually(lambda: all(status.state is DialState.FAILED for status in second.network.dials()))
        assert all(
            "two nodes are named b" in str(status.reason) and status.lasting for status in second.network.dials()
        )
        assert [peer.instance for peer in a.network.peers()] == [a.ups[0].instance]
        assert not second.linked()
        assert not a.downs


async def test_a_node_that_was_restarted_replaces_its_earlier_life_whose_link_hangs() -> None:
    async with nodes("a") as (a,):
        session = secrets.token_bytes(16)
        sockets = []
        for boot in (1, 2):
            instance = bytes([boot]) * 8
            identity = Identity("z", boot, instance, "127.0.0.1:9")
            for lane in Lane:
                socket = await connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], compression=None, proxy=None)
                await introduce(Bare(socket), identity, b"", lane, session)
                sockets.append(socket)
            await eventually(partial(_is_linked_to, a, instance))
        assert a.downs == [("z", "the node was restarted")]
        for socket in sockets:
            await socket.close()


async def test_a_peer_of_another_version_is_told_and_cut_off() -> None:
    async with log_lines("WARNING") as lines, nodes("a") as (a,):
        async with connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None) as socket:
            await socket.send(msgspec.msgpack.encode(["mlx-actor-runtime", 9, 8, "whatever"]))
            assert msgspec.msgpack.decode(bytes(await socket.recv())) == [0, "version", 2, 2]  # type: ignore[arg-type]  # a binary frame
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert any("speaks protocol versions 8 to 9, this node speaks version 2" in line for line in lines)


async def test_a_frame_that_was_cut_in_pieces_on_its_way_is_put_together() -> None:
    async with nodes("a") as (a,), connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None) as socket:
        hello = msgspec.msgpack.encode(["mlx-actor-runtime", 9, 8, "whatever"])
        await socket.send([hello[:1], b"", hello[1:9], hello[9:]])
        assert msgspec.msgpack.decode(bytes(await socket.recv())) == [0, "version", 2, 2]  # type: ignore[arg-type]  # a binary frame


async def test_a_frame_in_endless_pieces_is_cut_off() -> None:
    async with log_lines("WARNING") as lines, nodes("a") as (a,):
        async with connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None) as socket:
            with contextlib.suppress(ConnectionClosed):
                await socket.send([b""] * 50_000)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert any("more than 256 fragments" in line for line in lines)


@pytest.mark.parametrize(
    "junk", [b"", b"junk", secrets.token_bytes(5000), "text"], ids=["empty", "short", "long", "text"]
)
async def test_junk_instead_of_a_handshake_is_cut_off_and_harms_nobody(junk: bytes | str) -> None:
    async with log_lines("WARNING") as lines, pair() as (a, b):
        async with connect(f"ws://{b.address}/", subprotocols=[SUBPROTOCOL], proxy=None) as socket:
            await socket.send(junk)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        ref = b.system.spawn(Doubler, "doubler")
        assert await a.system.ask(ref, Double(1), 5) == Number(2)
        assert any("it broke the protocol" in line for line in lines)


async def test_bytes_that_are_no_websocket_harm_nobody() -> None:
    async with nodes("a") as (a,):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(a.address.rpartition(":")[2]))
        writer.write(b"\x16\x03\x01 not http at all\r\n\r\n")
        await writer.drain()
        await asyncio.wait_for(reader.read(), DEADLINE)
        writer.close()
        await writer.wait_closed()
        b = Node("b")
        b.dial(a.address)
        await eventually(lambda: a.linked() == ["b"])
        await b.stop()


async def test_a_peer_that_does_not_wait_for_the_end_of_the_opening_is_understood_all_the_same() -> None:
    async with nodes("a") as (a,):
        host, _, port = a.address.rpartition(":")
        client = ClientProtocol(parse_uri(f"ws://{a.address}/"), subprotocols=[SUBPROTOCOL])
        client.send_request(client.connect())
        opening = b"".join(client.data_to_send())
        message = Dialler(Identity("z", 1, b"z" * 8, ""), b"", Lane.CONTROL, b"s" * 16).hello()
        masked = MessageWriter(masks=True)
        # One whose second piece looks like the beginning of a frame.
        hello = next(
            frame
            for frame in iter(partial(masked.frame, message), b"")
            if frame[20] == 0x82 and 0x80 < frame[21] < 0xC0
        )
        reader, writer = await asyncio.open_connection(host, int(port))
        # The first piece comes right behind the request.
        writer.write(opening + hello[:20])
        received: list[Event] = []
        while not received:
            client.receive_data(await reader.read(4096))
            received = client.events_received()
        writer.write(hello[20:])
        while len(received) < 2:
            client.receive_data(await reader.read(4096))
            received += client.events_received()
        challenge = received[1]
        assert isinstance(challenge, Frame)
        assert msgspec.msgpack.decode(challenge.data)[:2] == [1, 2]
        writer.close()


async def test_a_silent_stranger_is_hung_up_on() -> None:
    brief = msgspec.structs.replace(FAST, handshake=0.1)
    async with (
        nodes("a", limits=brief) as (a,),
        connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None) as socket,
    ):
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), DEADLINE)


async def test_a_host_with_too_many_strangers_gets_no_further_connection() -> None:
    tight = msgspec.structs.replace(FAST, unauthenticated_per_host=1)
    async with (
        nodes("a", limits=tight) as (a,),
        connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None),
    ):
        with pytest.raises(InvalidStatus, match="503"):
            await connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], proxy=None)


async def test_a_web_page_cannot_speak_to_a_cluster_port() -> None:
    async with nodes("a") as (a,):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(f"ws://{a.address}/", subprotocols=[SUBPROTOCOL], origin=Origin("http://evil"), proxy=None)


@pytest.mark.parametrize(
    "junk",
    [
        b"junk",
        bytes(17),
        b"\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\xff\xff\xff\xff",
        "text",
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_cut_off_and_the_others_are_not(junk: bytes | str) -> None:
    async with log_lines("WARNING") as lines, pair() as (a, b):
        session = secrets.token_bytes(16)
        control, bulk = [await impostor(a, lane, session) for lane in Lane]
        await eventually(lambda: a.linked() == ["b", "z"])
        assert await control.recv() == READY
        await bulk.send(junk)
        await eventually(lambda: a.linked() == ["b"])
        with pytest.raises(ConnectionClosed):
            await _hear_out(control)
        assert control.close_code == POLICY
        ref = b.system.spawn(Doubler, "doubler")
        assert await a.system.ask(ref, Double(1), 5) == Number(2)
        assert any("node z is cut off: it broke the protocol" in line for line in lines)
        await bulk.close()


async def test_a_peer_that_speaks_for_another_node_is_cut_off() -> None:
    async with pair() as (a, b):
        b.network.send("a", Gone(ActorRef("c", "/x", 1), "normal"), Lane.CONTROL)
        await eventually(lambda: a.downs)
        assert "protocol error: a Gone for c/x came" in a.downs[0][1]


async def test_a_bulk_connection_of_no_session_is_refused() -> None:
    async with nodes("a") as (a,):
        with pytest.raises(ConnectionEnded):
            await impostor(a, Lane.BULK, secrets.token_bytes(16))


async def test_closing_one_lane_closes_the_session() -> None:
    async with nodes("a") as (a,):
        session = secrets.token_bytes(16)
        control, bulk = [await impostor(a, lane, session) for lane in Lane]
        await eventually(lambda: a.linked() == ["z"])
        await bulk.close()
        await eventually(lambda: a.downs)
        await asyncio.wait_for(control.wait_closed(), DEADLINE)


async def test_a_full_queue_refuses_messages_and_a_too_large_one_never_fits() -> None:
    small = msgspec.structs.replace(FAST, bulk_queue=300 * KIB, bulk_message=MIB, queue_messages=3)
    async with nodes("a", "b", limits=small) as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked())
        ref = b.system.spawn(Doubler, "doubler")
        tensor = Tensor("uint8", (200 * KIB,), bytes(200 * KIB))
        a.system.tell(ref, Store(tensor))
        with pytest.raises(MailboxFull, match="link to node b is full"):
            a.system.tell(ref, Store(tensor))
        for value in range(3):
            a.system.tell(ref, Number(value))
        with pytest.raises(MailboxFull, match="3 messages"):
            a.system.tell(ref, Number(3))
        with pytest.raises(TooLarge, match="over the limit of the bulk lane"):
            a.system.tell(ref, Store(Tensor("uint8", (2 * MIB,), bytes(2 * MIB))))


async def test_a_taken_port_is_a_clear_fault() -> None:
    async with nodes("a") as (a,):
        other = Network(ActorSystem("b"))
        with pytest.raises(ConfigError, match=r"cluster\.listen: 127\.0\.0\.1:\d+ is in use") as refused:
            await other.listen("127.0.0.1", int(a.address.rpartition(":")[2]))
        assert refused.value.param == "cluster.listen"


async def test_a_name_that_peers_would_not_take_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="a node is named by"):
        Network(ActorSystem("not a name"))


async def test_a_node_takes_as_many_peers_as_it_is_told() -> None:
    few = msgspec.structs.replace(FAST, peers=1)
    async with nodes("a", "b", "c", limits=few) as (a, b, c):
        b.dial(a.address)
        await eventually(lambda: a.linked() == ["b"])
        c.dial(a.address)
        await eventually(lambda: c.network.dials()[0].reason)
        assert "as many peers" in str(c.network.dials()[0].reason)


async def test_an_unknown_message_type_leaves_the_link_up_and_answers_the_ask() -> None:
    async with nodes("a") as (a,):
        session = secrets.token_bytes(16)
        control, bulk = [await impostor(a, lane, session) for lane in Lane]
        for _ in ("ready", "a grant for each lane", "and the other"):
            await control.recv()
        envelope = msgspec.msgpack.encode([1, ["a", "/x", 0], "plugin.unheard-of", {}, 7, 100])
        payload = len(envelope).to_bytes(4, "little") + envelope
        await control.send(grant_frame(Lane.CONTROL, Grant(1, KIB)))
        await control.send(batch_frame(0, [payload]))
        answer = await control.recv()
        assert isinstance(answer, bytes)
        assert b"plugin.unheard-of" in answer
        assert a.linked() == ["z"]
        for socket in (control, bulk):
            await socket.close()
