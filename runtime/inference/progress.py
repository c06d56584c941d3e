"""Progress of fetching and loading, from the threads that work to whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtime.spi import Download, Progress

MIN_INTERVAL = 0.1
"""Seconds between two reports of one piece of work."""


class ProgressBoard:
    """Keeps who watches which model. It lives on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watchers: dict[str, list[Progress]] = {}

    def watch(self, model: str, watcher: Progress) -> Callable[[], None]:
        """Call ``watcher`` with the model's progress until the returned function is called."""
        watchers = self._watchers.setdefault(model, [])
        watchers.append(watcher)

        def stop() -> None:
            watchers.remove(watcher)
            if not watchers and self._watchers.get(model) is watchers:
                del self._watchers[model]

        return stop

    def publish(self, progress: Download) -> None:
        """Tell the model's watchers."""
        for watcher in list(self._watchers.get(progress.model, ())):
            watcher(progress)

    def throttled(self, report: Callable[[Download], None]) -> Progress:
        """Make a callback for a working thread: it calls ``report`` on the event loop, ten times a second at most.

        The first and the last piece of a step are always reported.
        """
        last = -MIN_INTERVAL
        step = ""

        def throttle(progress: Download) -> None:
            nonlocal last, step
            now = self._loop.time()
            if now - last < MIN_INTERVAL and progress.done != progress.total and progress.step == step:
                return
            last, step = now, progress.step
            try:
                self._loop.call_soon_threadsafe(report, progress)
            except RuntimeError:
                return  # the loop is closed: the node stops, and nobody watches

        return throttle
