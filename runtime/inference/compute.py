"""The one thread that MLX runs on.

MLX must not run on the event loop: a forward pass would stop the heartbeats. It must not run on several threads
either: its default stream and random state belong to a thread. ``mx.eval`` releases the GIL, so the event loop goes
on while this thread waits for a result.

A job has three parts. ``dispatch`` builds the graph; of what it returns, ``launch`` starts it and ``collect`` waits for
the numbers. While one job is being computed the graph of the next is built already. It is launched when the one
before is collected, because MLX bounds what may be queued on a CPU: launching takes until most of it is computed, and
whoever waits for the job before would hear of it that much later. A GPU would stand idle meanwhile, so jobs for one
launch within ``dispatch``.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def _nothing() -> None:
    """Launch what needs no launching."""


class Computation(NamedTuple, Generic[T_co]):
    """A graph that is built."""

    collect: Callable[[], T_co]
    launch: Callable[[], None] = _nothing


Dispatch = Callable[[], Computation[T]]


class _Job:
    __slots__ = ("dispatch", "done", "loop")

    def __init__(
        self,
        dispatch: Dispatch[Any],
        done: Callable[[Any, BaseException | None], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.dispatch = dispatch
        self.done = done
        self.loop = loop

    def finish(self, value: Any, error: BaseException | None) -> None:
        try:
            self.loop.call_soon_threadsafe(self.done, value, error)
        except RuntimeError:
            # The loop closed while the job ran: the node is gone, and with it whoever wanted the result.
            return


class ComputeThread:
    """Runs jobs in the order they are submitted."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.computing = False
        """Whether the job before is still being computed; for the ``dispatch`` of one."""
        self._closed = False
        self._idle = threading.Event()
        """Set once no more jobs are run."""
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def submit(self, dispatch: Dispatch[T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Queue a job; ``done(value, error)`` is called on the event loop that submits it."""
        self._jobs.put(_Job(dispatch, done, asyncio.get_running_loop()))

    async def run(self, work: Callable[[], T]) -> T:
        """Run a plain function on the thread, after the jobs before it, and wait for its result."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(value: T | None, error: BaseException | None) -> None:
            if future.done():  # the waiter was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]  # without an error there is a value, maybe None

        # Its work is all in the last part: were it in the first, the job before would not be finished yet.
        self.submit(lambda: Computation(work), done)
        return await future

    def close(self, timeout: float) -> bool:
        """Let the jobs in hand be the last, without those still queued; return whether they were done in time."""
        self._closed = True
        self._jobs.put(None)
        return self._idle.wait(timeout)

    def _work(self) -> None:
        self._run_jobs()
        self._idle.set()
        # MLX 0.32 takes the GIL when it frees what it keeps for a thread that ends, which is after the thread's join
        # has returned: an interpreter that is being finalized by then aborts. So this thread, a daemon, never ends.
        threading.Event().wait()

    def _run_jobs(self) -> None:
        launched: tuple[_Job, Computation[Any]] | None = None
        while True:
            try:
                job = self._jobs.get(block=launched is None)
            except queue.Empty:
                job = None
            else:
                if job is None or self._closed:
                    if launched is not None:
                        _collect(*launched)
                    return
            following = _dispatch(job) if job is not None else None
            if launched is not None:
                _collect(*launched)
            launched = _launch(*following) if following is not None else None
            self.computing = launched is not None


def _dispatch(job: _Job) -> tuple[_Job, Computation[Any]] | None:
    try:
        return job, job.dispatch()
    except BaseException as error:  # noqa: BLE001 - it is handed to whoever submitted the job
        job.finish(None, error)
        return None


def _launch(job: _Job, computation: Computation[Any]) -> tuple[_Job, Computation[Any]] | None:
    try:
        computation.launch()
    except BaseException as error:  # noqa: BLE001 - it is handed to whoever submitted the job
        job.finish(None, error)
        return None
    return job, computation


def _collect(job: _Job, computation: Computation[Any]) -> None:
    try:
        value = computation.collect()
    except BaseException as error:  # noqa: BLE001 - it is handed to whoever submitted the job
        job.finish(None, error)
    else:
        job.finish(value, None)
