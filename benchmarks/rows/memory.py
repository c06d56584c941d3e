"""What an actor that does nothing takes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import psutil

from benchmarks.rows.row import Aim, Row
from runtime.actors import Actor, ActorSystem

IDLE = 10_000
LIMIT = 40e6
"""Bytes."""


async def rows(loop: str) -> AsyncIterator[Row]:
    """Measure the growth of the process with the idle actors, against the limit for them."""
    process = psutil.Process()
    system = ActorSystem("bench")
    for number in range(100):
        system.spawn(Actor, f"warm/{number}")
    await asyncio.sleep(0.05)
    gc.collect()
    before = process.memory_info().rss
    for number in range(IDLE):
        system.spawn(Actor, f"idle/{number}")
    await asyncio.sleep(0.05)
    gc.collect()
    grown = float(process.memory_info().rss - before)
    await system.shut_down(5.0)
    ratio = grown / LIMIT
    aim = Aim(most=1.0)
    yield Row(f"memory of {IDLE} idle actors", "40 MB", loop, "bytes", grown, LIMIT, ratio, str(aim), aim.is_met(ratio))
