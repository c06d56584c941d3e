"""Messages within one node, against a deque, a future and a loop, which is the least that a mailbox can be."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from benchmarks.rows.row import Aim, Row, compare
from runtime.actors import Actor, ActorSystem, Message, Request

TELLS = 20_000
BURST = 64
"""Tells before the sender lets others run; a mailbox holds more."""
ASKS = 6_400
SECONDS = 60.0


class Count(Message, frozen=True, tag="bench.count"):
    """Adds up, or is what was added up."""

    amount: int


class Add(Request[Count], frozen=True, tag="bench.add"):
    """Adds up, and answers with the sum."""

    amount: int


class Counter(Actor):
    """Adds up."""

    def __init__(self) -> None:
        self.total = 0

    async def receive(self, message: Message) -> Message | None:
        """Take a :class:`Count` or an :class:`Add`."""
        if isinstance(message, Count):
            self.total += message.amount
            return None
        assert isinstance(message, Add)  # noqa: S101 - for the types; nothing else is sent
        self.total += message.amount
        return Count(self.total)


class BareLoop:
    """A queue and the task that reads it, with the same work for each message and nothing else."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Message, asyncio.Future[Any] | None]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.counter = Counter()
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def run(self) -> None:
        """Read for ever."""
        queue, receive = self.queue, self.counter.receive
        loop = asyncio.get_running_loop()
        while True:
            if not queue:
                self.waiter = loop.create_future()
                await self.waiter
                self.waiter = None
            message, reply = queue.popleft()
            answer = await receive(message)
            if reply is not None:
                reply.set_result(answer)

    def put(self, message: Message, reply: asyncio.Future[Any] | None) -> None:
        """Queue a message."""
        self.queue.append((message, reply))
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


async def bare_tells() -> float:
    """Return tells a second through the bare loop."""
    bare = BareLoop()
    await asyncio.sleep(0)
    message = Count(1)
    start = time.perf_counter()
    for number in range(TELLS):
        bare.put(message, None)
        if number % BURST == 0:
            await asyncio.sleep(0)
    last: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    bare.put(Add(0), last)
    await last
    seconds = time.perf_counter() - start
    bare.task.cancel()
    return TELLS / seconds


async def actor_tells() -> float:
    """Return tells a second to an actor."""
    system = ActorSystem("bench")
    ref = system.spawn(Counter, "counter")
    await asyncio.sleep(0)
    message = Count(1)
    start = time.perf_counter()
    for number in range(TELLS):
        system.tell(ref, message)
        if number % BURST == 0:
            await asyncio.sleep(0)
    await system.ask(ref, Add(0), SECONDS)
    seconds = time.perf_counter() - start
    await system.shut_down(1.0)
    return TELLS / seconds


async def bare_asks(at_once: int) -> float:
    """Return round trips a second through the bare loop, so many at once."""
    bare = BareLoop()
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    message = Add(1)

    async def ask() -> None:
        for _ in range(ASKS // at_once):
            reply: asyncio.Future[Any] = loop.create_future()
            bare.put(message, reply)
            await reply

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(at_once)))
    seconds = time.perf_counter() - start
    bare.task.cancel()
    return ASKS / seconds


async def actor_asks(at_once: int) -> float:
    """Return asks a second of an actor, so many at once."""
    system = ActorSystem("bench")
    ref = system.spawn(Counter, "counter")
    await asyncio.sleep(0)
    message = Add(1)

    async def ask() -> None:
        for _ in range(ASKS // at_once):
            await system.ask(ref, message, SECONDS)

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(at_once)))
    seconds = time.perf_counter() - start
    await system.shut_down(1.0)
    return ASKS / seconds


async def pykka_asks(at_once: int) -> float:
    """Return asks a second of an actor of pykka, whose actors are threads, so many at once."""
    import pykka

    class Threaded(pykka.ThreadingActor):
        def __init__(self) -> None:
            super().__init__()
            self.total = 0

        def on_receive(self, message: Any) -> Any:
            self.total += message.amount
            return Count(self.total)

    ref = Threaded.start()
    message = Add(1)
    start = time.perf_counter()
    for _ in range(ASKS // at_once):
        for reply in [ref.ask(message, block=False) for _ in range(at_once)]:
            reply.get(timeout=SECONDS)
    seconds = time.perf_counter() - start
    ref.stop()
    return ASKS / seconds


async def rows(loop: str) -> AsyncIterator[Row]:
    """Measure the rows of this module."""
    bare = "deque + future loop"
    yield await compare("local tell", actor_tells, bare, bare_tells, Aim(least=0.4), loop=loop)
    for at_once in (1, 64):
        name = f"local ask, {at_once} at once"
        ours = partial(actor_asks, at_once)
        yield await compare(name, ours, bare, partial(bare_asks, at_once), Aim(least=0.5), loop=loop)
        yield await compare(name, ours, "pykka", partial(pykka_asks, at_once), Aim(least=4.0), loop=loop)
