from __future__ import annotations

import asyncio
from typing import ClassVar

import msgspec
import pytest

from runtime.actors import Actor, ActorRef, Lane, Message
from runtime.errors import MailboxFull, PeerUnreachable
from runtime.wire import Tensor
from runtime.wire.limits import KIB
from tests.wire.loopback import DEADLINE, FAST, Node, eventually, nodes
from tests.wire.messages import Double, Doubler, Number

TIGHT = msgspec.structs.replace(FAST, bulk_credit=64 * KIB, bulk_queue=128 * KIB)
BLOCK = Tensor("uint8", (16 * KIB,), bytes(16 * KIB))


class Weigh(Message, frozen=True, tag="test.weigh"):
    lane: ClassVar[Lane] = Lane.BULK
    tensor: Tensor


class Slow(Actor):
    """Handles nothing before it is let."""

    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.handled = 0

    async def receive(self, message: Message) -> None:
        await self.gate.wait()
        self.handled += 1


async def _fill(a: Node, ref: ActorRef) -> int:
    """Tell until no more fits and nothing moves any more; return how many were taken."""
    told, idle = 0, 0
    while idle < 20:
        try:
            a.system.tell(ref, Weigh(BLOCK))
        except MailboxFull:
            idle += 1
            await asyncio.sleep(0.005)
        else:
            told += 1
            idle = 0
            await asyncio.sleep(0)
    return told


async def test_a_slow_reader_is_sent_its_credit_and_no_more_while_control_goes_on_and_then_gets_the_rest() -> None:
    async with nodes("a", "b", limits=TIGHT) as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        gate = asyncio.Event()
        slow = Slow(gate)
        ref = b.system.spawn(lambda: slow, "slow")
        told = await _fill(a, ref)
        out, held = a.network.traffic("b")[Lane.BULK], b.network.traffic("a")[Lane.BULK]
        assert held.held_bytes <= 64 * KIB
        assert out.queued_bytes <= 128 * KIB
        assert told == held.held_messages + out.queued_messages
        quick = b.system.spawn(Doubler, "quick")
        assert await a.system.ask(quick, Double(1), 5) == Number(2)
        gate.set()
        await eventually(lambda: slow.handled == told)
        await eventually(lambda: b.network.traffic("a")[Lane.BULK].held_bytes == 0)


@pytest.mark.parametrize("path", ["/nobody", "/stopping"])
async def test_a_message_that_nobody_handles_gives_its_credit_back(path: str) -> None:
    async with nodes("a", "b", limits=TIGHT) as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        gate = asyncio.Event()
        ref = b.system.spawn(lambda: Slow(gate), "stopping")
        if path == "/nobody":
            ref = ActorRef("b", path)
            for _ in range(40):  # many times the window
                a.system.tell(ref, Weigh(BLOCK))
                await eventually(lambda: not a.network.traffic("b")[Lane.BULK].queued_bytes)
        else:
            await _fill(a, ref)
            b.system.stop(ref)
            gate.set()
        await eventually(lambda: not a.network.traffic("b")[Lane.BULK].queued_bytes)
        await eventually(lambda: not b.network.traffic("a")[Lane.BULK].held_bytes)


async def test_a_send_waits_for_the_credit_of_a_slow_reader_and_loses_nothing() -> None:
    async with nodes("a", "b", limits=TIGHT) as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        gate = asyncio.Event()
        slow = Slow(gate)
        ref = b.system.spawn(lambda: slow, "slow")
        told = await _fill(a, ref)
        sending = [asyncio.ensure_future(a.system.send(ref, Weigh(BLOCK))) for _ in range(20)]
        await asyncio.sleep(0)
        assert not any(sent.done() for sent in sending)
        sending.pop().cancel()
        gate.set()
        await asyncio.wait_for(asyncio.gather(*sending), DEADLINE)
        await eventually(lambda: slow.handled == told + 19)


async def test_a_send_that_waits_fails_when_the_link_is_lost() -> None:
    async with nodes("a", "b", limits=TIGHT) as (a, b):
        a.dial(b.address)
        await eventually(lambda: a.linked() == ["b"] and b.linked() == ["a"])
        ref = b.system.spawn(lambda: Slow(asyncio.Event()), "slow")
        await _fill(a, ref)
        sending = asyncio.ensure_future(a.system.send(ref, Weigh(BLOCK)))
        await asyncio.sleep(0)
        a.dial()
        a.network.disconnect("b", "test")
        with pytest.raises(PeerUnreachable):
            await asyncio.wait_for(sending, DEADLINE)
