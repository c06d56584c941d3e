"""The one thread that MLX runs on.

MLX must not run on the event loop: a forward pass would stop the heartbeats. It must not run on several threads
either: its default stream and random state belong to a thread. ``mx.eval`` releases the GIL, so the event loop goes
on while this thread waits for a result.

A job has three parts. ``dispatch`` builds the graph; of what it returns, ``launch`` starts it and ``collect`` waits for
the numbers. While one job is being computed the graph of the next is built already. It is launched when the one
before is collected, because MLX bounds what may be queued on a CPU: launching takes until most of it is computed, and
whoever waits for the job before would hear of it that much later. A GPU would stand idle meanwhile, so jobs for one
launch within ``dispatch``.

A device that hangs takes the thread with it, and Python cannot end a thread. So whoever waits can be told that it is
stuck (:meth:`ComputeThread.give_up`), and new work is refused until it answers again
(:mod:`runtime.inference.health`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from runtime.errors import RuntimeFault
from runtime.inference.step_times import FIRST, Bounded, Expected

PATIENCE = 5.0
"""Seconds: longer than a core is kept from a process by what else a machine does."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def _nothing() -> None:
    """Launch what needs no launching."""


class Computation(NamedTuple, Generic[T_co]):
    """A graph that is built."""

    collect: Callable[[], T_co]
    launch: Callable[[], None] = _nothing
    teaches: bool = True
    """Whether the time that it takes says what another job of its size takes."""


Dispatch = Callable[[], Computation[T]]


class _Job:
    __slots__ = ("dispatch", "done", "expected", "loop", "lost", "settled")

    def __init__(
        self,
        dispatch: Dispatch[Any],
        done: Callable[[Any, BaseException | None], None],
        loop: asyncio.AbstractEventLoop,
        expected: Expected,
        settled: Callable[[_Job], None],
    ) -> None:
        self.dispatch: Dispatch[Any] | None = dispatch
        self.done = done
        self.loop = loop
        self.expected = expected
        self.settled = settled
        self.lost = False
        """Whether whoever submitted it was told that the thread is stuck."""

    def take(self) -> Dispatch[Any]:
        """Return the first part, once. It holds on to a model, which must not live until the event loop has time."""
        dispatch, self.dispatch = self.dispatch, None
        assert dispatch is not None  # noqa: S101 - the thread takes a job off its queue once
        return dispatch

    def finish(self, value: Any, error: BaseException | None, seconds: float | None) -> None:
        """Hand the result to the event loop. Called on the compute thread.

        ``seconds`` is what it took; None if that teaches nothing.
        """
        try:
            self.loop.call_soon_threadsafe(self._deliver, value, error, seconds)
        except RuntimeError:
            # The loop closed while the job ran: the node is gone, and with it whoever wanted the result.
            return

    def _deliver(self, value: Any, error: BaseException | None, seconds: float | None) -> None:
        if self.lost:
            return
        self.settled(self)
        if seconds is not None:
            self.expected.took(seconds)
        self.done(value, error)


class _Built(NamedTuple):
    """A job whose graph is built, or launched too."""

    job: _Job
    computation: Computation[Any]
    seconds: float
    """That it has taken of the thread's time."""


class InHand(NamedTuple):
    """The part of a job that the thread is at."""

    number: int
    """Of all parts so far; another one means that the thread has answered since."""
    allowed: float
    """Seconds that it may take."""
    what: str = "a step"
    """Of what it is a part, for the text of a fault."""


class ComputeThread:
    """Runs jobs in the order they are submitted.

    Args:
        patience: seconds that any step may take before the thread counts as stuck.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._other = Bounded("work on the compute thread", FIRST * patience)
        """What is expected of work of which nothing is said."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.computing = False
        """Whether the job before is still being computed; for the ``dispatch`` of one."""
        self._pending: dict[_Job, None] = {}
        """Those that can be told that the thread is stuck, in order. Only the event loop looks at it."""
        self._stuck: RuntimeFault | None = None
        self._parts = 0
        self._in_hand: InHand | None = None
        self._closed = False
        self._idle = threading.Event()
        """Set once no more jobs are run."""
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def submit(
        self,
        dispatch: Dispatch[T],
        done: Callable[[T | None, BaseException | None], None],
        expected: Expected | None = None,
    ) -> None:
        """Queue a job; ``done(value, error)`` is called on the event loop that submits it.

        Args:
            dispatch: the first part, which returns the others.
            done: hears the fault that :meth:`give_up` was called with if the thread is stuck, at once.
            expected: what is known of its time; a job without it may take :data:`~runtime.inference.step_times.FIRST`
                times the patience.
        """
        self._submit(dispatch, done, expected)

    async def run(self, work: Callable[[], T], *, outlasts: bool = False, expected: Expected | None = None) -> T:
        """Run a plain function on the thread, after the jobs before it, and wait for its result.

        Args:
            work: the function.
            expected: as for :meth:`submit`; work that calls :meth:`got_on` has that time anew.
            outlasts: whether to wait for a thread that is stuck, because the work is to clean up after the others.

        Raises:
            RuntimeFault: the thread is stuck.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(value: T | None, error: BaseException | None) -> None:
            if future.done():  # the waiter was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]  # without an error there is a value, maybe None

        # Its work is all in the last part: were it in the first, the job before would not be finished yet.
        self._submit(lambda: Computation(work), done, expected, outlasts=outlasts)
        return await future

    def got_on(self) -> None:
        """Say that the work in hand has made progress. Called on the compute thread, by that work."""
        if self._in_hand is not None:  # it may be called in a test or a benchmark, on another thread
            self._parts += 1
            self._in_hand = self._in_hand._replace(number=self._parts)

    async def settle(self) -> None:
        """Wait until all jobs so far are over and whoever submitted them has heard, even of a thread that is stuck.

        Only then is nothing left of what they hold on to: a failed job's error has the frames that it came through.
        """
        await self.run(lambda: None, outlasts=True)

    def close(self, timeout: float) -> bool:
        """Let the jobs in hand be the last, without those still queued; return whether they were done in time."""
        self._closed = True
        self._jobs.put(None)
        return self._idle.wait(timeout)

    # -- for the watch over the thread --------------------------------------------------------------------------------

    def in_hand(self) -> InHand | None:
        """Return what the thread is at; None if it waits for work."""
        return self._in_hand

    def give_up(self, fault: RuntimeFault) -> None:
        """Fail the jobs that wait and the one in hand with ``fault``, and each new one, until :meth:`resume`.

        What the thread still computes of them is dropped. What cleans up waits on.
        """
        self._stuck = fault
        lost, self._pending = self._pending, {}
        for job in lost:
            job.lost = True
            job.done(None, fault)

    def resume(self) -> None:
        """Take work again."""
        self._stuck = None

    # -- inside -----------------------------------------------------------------------------------------------------

    def _submit(
        self,
        dispatch: Dispatch[Any],
        done: Callable[[Any, BaseException | None], None],
        expected: Expected | None = None,
        *,
        outlasts: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        if self._stuck is not None and not outlasts:
            loop.call_soon(done, None, self._stuck)
            return
        job = _Job(dispatch, done, loop, expected or self._other, self._settle)
        if not outlasts:
            self._pending[job] = None
        self._jobs.put(job)

    def _settle(self, job: _Job) -> None:
        self._pending.pop(job, None)

    def _work(self) -> None:
        self._run_jobs()
        self._idle.set()
        # MLX 0.32 takes the GIL when it frees what it keeps for a thread that ends, which is after the thread's join
        # has returned: an interpreter that is being finalized by then aborts. So this thread, a daemon, never ends.
        threading.Event().wait()

    def _run_jobs(self) -> None:
        launched: _Built | None = None
        while True:
            try:
                job = self._jobs.get(block=launched is None)
            except queue.Empty:
                job = None
            else:
                if job is None or self._closed:
                    if launched is not None:
                        self._collect(launched)
                    return
            following = self._dispatch(job) if job is not None and not job.lost else None
            if launched is not None:
                self._collect(launched)
            launched = self._launch(following) if following is not None else None
            self.computing = launched is not None
            # Neither may be kept while the thread waits: a job holds on to a model.
            job = following = None

    def _dispatch(self, job: _Job) -> _Built | None:
        done = self._part(job, job.take())
        return None if done is None else _Built(job, *done)

    def _launch(self, built: _Built) -> _Built | None:
        done = self._part(built.job, built.computation.launch)
        return None if done is None else built._replace(seconds=built.seconds + done[1])

    def _collect(self, built: _Built) -> None:
        done = self._part(built.job, built.computation.collect)
        if done is not None:
            value, seconds = done
            built.job.finish(value, None, built.seconds + seconds if built.computation.teaches else None)

    def _part(self, job: _Job, work: Callable[[], T]) -> tuple[T, float] | None:
        """Do a part of a job; return its result and the seconds it took. None if it failed, which was told then."""
        self._parts += 1
        try:
            self._in_hand = InHand(self._parts, job.expected.allowed, job.expected.what)
            began = time.monotonic()
            return work(), time.monotonic() - began
        except BaseException as error:  # noqa: BLE001 - it is handed to whoever submitted the job
            job.finish(None, error, None)
            return None
        finally:
            self._in_hand = None
