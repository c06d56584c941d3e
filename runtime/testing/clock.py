"""Virtual time: an event loop whose clock jumps to the next timer when nothing else is left to do.

An hour of heartbeats passes in a moment, and a timeout of 5 s takes exactly 5 s. In a test module or a
``conftest.py``, with anyio's pytest plugin:

    from runtime.testing.clock import virtual_clock

    @pytest.fixture
    def anyio_backend() -> Any:
        return virtual_clock()

    async def test_a_second_passes_at_once() -> None:
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        assert asyncio.get_running_loop().time() == before + 1

Outside of pytest, ``run(main())`` does the same as ``asyncio.run`` does.

Only the loop's clock is virtual: ``time.monotonic()`` is not. Nothing real can be waited for, because it is not known
how much virtual time that takes: a socket, a subprocess or a thread raises :class:`RealInputOutput`. Where every task
waits and no timer is set, :class:`NothingLeftToDo` is raised instead of hanging for ever. Periodic work keeps time
going, so there is a limit to it, too: :class:`TooMuchTime`.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

DEFAULT_LIMIT = 24 * 3600.0
"""Seconds of virtual time that a loop may run."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualTimeError(Exception):
    """What is awaited cannot come in virtual time."""


class RealInputOutput(VirtualTimeError):
    """Something real was to be waited for: a socket, a pipe, a subprocess, another thread."""


class NothingLeftToDo(VirtualTimeError):
    """Every task waits for another, and no timer is set: nothing will ever happen."""


class TooMuchTime(VirtualTimeError):
    """The limit of virtual time is reached, and the end is not."""


class _JumpingSelector(selectors.BaseSelector):
    """Where a loop would wait for the next timer, moves the clock there instead."""

    def __init__(self, limit: float) -> None:
        self.now = 0.0
        self.intruded = False
        """Whether another thread has called."""
        self._limit = limit
        self._own: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._own:
            _refuse("a socket or a pipe")
        # The first is the loop's own, through which other threads and signals would wake it.
        key = self._own[fileobj] = selectors.SelectorKey(fileobj, int(fileobj), events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._own.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._own

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.intruded:
            self.intruded = False
            _refuse("another thread")
        if timeout is None:
            raise NothingLeftToDo(
                f"at {self.now:g} s every task waits for another and no timer is set; these wait:\n{_waiting()}"
            )
        if timeout > 0:
            self.now += timeout
            if self.now > self._limit:
                raise TooMuchTime(f"{self._limit:g} s of virtual time have passed; these still wait:\n{_waiting()}")
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at zero and moves only by waiting."""

    def __init__(self, limit: float = DEFAULT_LIMIT) -> None:
        """``limit`` is the virtual time, in seconds, after which it gives up."""
        self._jumping = _JumpingSelector(limit)
        self._thread = threading.get_ident()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the seconds of virtual time that have passed."""
        return self._jumping.now

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Refuse other threads: by the time they call, the clock may have jumped anywhere."""
        if threading.get_ident() != self._thread:
            # Raised by the loop, because it is the loop's user who waits for the thread.
            self._jumping.intruded = True
            return asyncio.Handle(callback, args, self, context)
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]  # nothing is returned
        """Refuse threads of the loop's own; name resolution is among what would use them."""
        del executor, func, args
        _refuse("a thread (an executor, or the resolution of a host name)")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse subprocesses."""
        del args, kwargs
        _refuse("a subprocess")

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse subprocesses."""
        del args, kwargs
        _refuse("a subprocess")


def virtual_clock(limit: float = DEFAULT_LIMIT) -> tuple[str, dict[str, Callable[[], asyncio.AbstractEventLoop]]]:
    """Return what the fixture ``anyio_backend`` is to return for tests that run in virtual time."""
    return "asyncio", {"loop_factory": lambda: VirtualClockLoop(limit)}


def run(
    main: Coroutine[Any, Any, T],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = VirtualClockLoop,
) -> T:
    """Run a coroutine in virtual time and return what it returns.

    Raises:
        VirtualTimeError: it waits for what cannot come.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


def _refuse(what: str) -> NoReturn:
    raise RealInputOutput(
        f"{what} was to be waited for, which virtual time cannot: use the in-memory transport, or a test on a real loop"
    )


def _waiting() -> str:
    """Name the tasks that wait and where, a line each."""
    lines = []
    for task in asyncio.all_tasks():
        stack = task.get_stack(limit=1)
        where = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "?"
        lines.append(f"  {task.get_name()} at {where}")
    return "\n".join(sorted(lines))
