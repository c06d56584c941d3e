"""A peer written from ``docs/wire.md`` and nothing of :mod:`runtime.wire`."""

from __future__ import annotations

import hmac
import secrets
import struct
from typing import Any

from msgspec import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.wire.loopback import eventually, nodes
from tests.wire.messages import Doubler

KEY = b"of the cluster"
MAGIC = "mlx-actor-runtime"


async def _received(socket: ClientConnection) -> bytes:
    frame = await socket.recv()
    assert isinstance(frame, bytes)
    return frame


async def _connect(address: str, lane: int, session: bytes, identity: list[Any]) -> ClientConnection:
    socket = await connect(f"ws://{address}/", subprotocols=[Subprotocol(MAGIC)], compression=None, proxy=None)
    hello = [MAGIC, 2, 2, lane, secrets.token_bytes(32), session, identity]
    await socket.send(msgpack.encode(hello))
    _, version, nonce = msgpack.decode(await _received(socket))
    assert version == 2

    def mac(role: int, whose: list[Any] | None, code: str) -> bytes:
        transcript = [MAGIC, "handshake", role, hello, version, nonce, whose, code]
        return hmac.digest(KEY, msgpack.encode(transcript), "sha256")

    await socket.send(msgpack.encode([2, mac(0, None, "")]))
    _, peer, code, theirs = msgpack.decode(await _received(socket))
    assert (peer[0], code) == ("a", "")
    assert hmac.compare_digest(theirs, mac(1, peer, code))
    return socket


def _grant(lane: int, messages: int, size: int) -> bytes:
    return struct.pack("<BB6xQQ", 3, lane, messages, size)


def _payload(envelope: Any, tensors: bytes = b"") -> bytes:
    packed = msgpack.encode(envelope)
    head = struct.pack("<I", len(packed)) + packed
    return head + bytes(-len(head) % 16) + tensors if tensors else head


def _batch(sequence: int, *payloads: bytes) -> bytes:
    return struct.pack("<B3xIQ", 1, len(payloads), sequence) + b"".join(
        struct.pack("<I", len(payload)) + payload for payload in payloads
    )


async def test_a_peer_written_from_the_document_asks_and_is_answered_on_both_lanes() -> None:
    async with nodes("a", key=KEY) as (a,):
        doubler = Doubler()
        a.system.spawn(lambda: doubler, "doubler")
        session, identity = secrets.token_bytes(16), ["z", 1, secrets.token_bytes(8), ""]
        control, bulk = [await _connect(a.address, lane, session, identity) for lane in (0, 1)]
        assert await _received(control) == b"ready"
        assert {(await _received(control))[:2] for _ in range(2)} == {b"\x03\x00", b"\x03\x01"}
        for lane in (0, 1):
            await control.send(_grant(lane, 10, 1000))

        target = ["a", "/doubler", 0]
        await control.send(
            _batch(
                0,
                _payload([0, target, "test.number", {"type": "test.number", "value": 5}]),
                _payload([1, target, "test.double", {"type": "test.double", "value": 21}, 77, 1000, []]),
            )
        )
        assert await _received(control) == _batch(
            0, _payload([2, 77, "test.number", {"type": "test.number", "value": 42}])
        )
        assert doubler.numbers == [5]

        data = secrets.token_bytes(300_000)
        message = {"type": "test.store", "tensor": ["uint8", [300_000], 0]}
        payload = _payload([1, target, "test.store", message, 78, 1000, []], data)
        await bulk.send(struct.pack("<B7xQQ8x", 2, 0, len(payload)) + payload[:50])
        for at in range(50, len(payload), 150_000):
            await bulk.send(payload[at : at + 150_000])
        assert await _received(control) == _batch(
            1, _payload([2, 78, "test.number", {"type": "test.number", "value": 300_000}])
        )
        assert doubler.stored[0].data == data

        # And an offence: the number of a message that was sent already.
        await control.send(_batch(0, _payload([7, 1])))
        await control.wait_closed()
        await eventually(lambda: a.linked() == [])
        assert (control.close_code, bulk.close_code) == (1008, 1008)
