"""Adds up what huggingface_hub tells its progress bars."""

from __future__ import annotations

import threading
from typing import Any

from runtime.spi import Download, Progress


class Meter:
    """Bytes of one snapshot, told to a callback.

    huggingface_hub shows a snapshot with one or two bars that count bytes (what came over the network, and what was
    written) beside one that counts files; which exist depends on its version and on the transfer. All byte bars count
    the same files, so the one that is furthest is the progress.
    """

    def __init__(self, model: str, progress: Progress, *, done: int, total: int) -> None:
        self._model = model
        self._progress = progress
        self._before = done
        self._total = total
        self._bars: dict[int, float] = {}
        self._lock = threading.Lock()
        self.tell()

    def add(self, bar: int, count: float) -> None:
        """Count bytes of one bar."""
        with self._lock:
            self._bars[bar] = self._bars.get(bar, 0) + count
        self.tell()

    def tell(self) -> None:
        """Call back with what is done."""
        done = self._before + int(max(self._bars.values(), default=0))
        self._progress(Download(self._model, "downloading", min(max(0, done), self._total), self._total))

    def bar_class(self) -> type[Any]:
        """Make a tqdm class that draws nothing and counts here."""
        from tqdm import tqdm  # type: ignore[import-untyped]  # a dependency of huggingface_hub, without annotations

        meter = self

        class SilentBar(tqdm):  # type: ignore[misc]  # as above
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._counts_bytes = kwargs.get("unit") == "B"
                kwargs.pop("name", None)  # huggingface_hub's own addition
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                if self._counts_bytes and n:
                    meter.add(id(self), n)
                return None

        return SilentBar
