"""Simulated processes: parts of one event loop that can be frozen and thawed, as the operating system does it.

Whatever is started inside a :class:`Process` belongs to it, and so does what that starts in turn; it is known by the
context that asyncio carries from task to task. While a process is frozen nothing of it runs: what becomes due is kept,
and runs when it is thawed, late and in the order in which it came due. That is what a process sees that was stopped,
swapped out or starved: a clock that has jumped, and everything at once.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple, Unpack

from runtime.testing.clock import DEFAULT_LIMIT, VirtualClockLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CURRENT: ContextVar[Process | None] = ContextVar("simulated process", default=None)


class Process:
    """Code that is frozen together. Made inside a running :class:`SimulationLoop`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.held: list[tuple[asyncio.Handle, Callable[..., object], tuple[Any, ...], Context]] = []
        """What became due while it was frozen."""
        self._loop = asyncio.get_running_loop()
        if not isinstance(self._loop, SimulationLoop):
            raise TypeError(f"a simulated process needs a SimulationLoop, and {type(self._loop).__name__} runs")
        self._context = contextvars.copy_context()
        self._context.run(_CURRENT.set, self)

    def call(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call a function as code of this process; the tasks it starts are the process's own."""
        return self._context.copy().run(function, *args)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as a task of this process, and wait for it."""
        return await self._loop.create_task(work, name=f"{self.name} run", context=self._context.copy())

    def freeze(self) -> None:
        """Let nothing of it run from the next turn of the loop on."""
        self.frozen = True

    def thaw(self) -> None:
        """Let it run again, beginning with what it has missed."""
        self.frozen = False
        held, self.held = self.held, []
        for handle, callback, args, context in held:
            self._loop.call_soon(_run_unless_cancelled, handle, callback, args, context=context)


class SimulationLoop(VirtualClockLoop):
    """A virtual clock that knows which process a callback belongs to."""

    def __init__(self, limit: float = DEFAULT_LIMIT) -> None:
        super().__init__(limit)

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run a callback at the next turn, or when its process is thawed."""
        if context is None:
            context = contextvars.copy_context()
        process = context.get(_CURRENT)
        if process is None or not process.frozen:
            return super().call_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        process.held.append((handle, callback, args, context))
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a time, or when its process is thawed, if that is later."""
        if context is None:
            context = contextvars.copy_context()
        process = context.get(_CURRENT)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        own: list[asyncio.TimerHandle] = []
        own.append(super().call_at(when, _due, process, own, callback, args, context, context=context))
        return own[0]


def simulation_clock(limit: float = DEFAULT_LIMIT) -> tuple[str, dict[str, Callable[[], asyncio.AbstractEventLoop]]]:
    """Return what the fixture ``anyio_backend`` is to return for tests that simulate nodes."""
    return "asyncio", {"loop_factory": lambda: SimulationLoop(limit)}


def _due(
    process: Process,
    own: list[asyncio.TimerHandle],
    callback: Callable[..., object],
    args: tuple[Any, ...],
    context: Context,
) -> None:
    if process.frozen:
        process.held.append((own[0], callback, args, context))
    else:
        callback(*args)


def _run_unless_cancelled(handle: asyncio.Handle, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    if not handle.cancelled():
        callback(*args)
