"""How long a driver stays: while its model is wanted, and no other driver serves it better.

:mod:`runtime.inference.keep_alive` says how many seconds; here is who waits for them, and what changes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from loguru import logger

from runtime.actors import ActorRef, ReplyTo
from runtime.errors import ModelInUse
from runtime.inference.keep_alive import KeepAlive
from runtime.inference.protocol import Done


class Lifetime:
    """The life of one model's driver.

    Args:
        model: its name, for what is told.
        keep_alive: seconds without a request after which it ends; negative is never.
    """

    def __init__(self, model: str, keep_alive: float) -> None:
        self._model = model
        self._kept = KeepAlive(keep_alive, time.time())
        self._touched = anyio.Event()
        self.unloading: list[ReplyTo] = []
        """Those who asked for its end, and wait for it."""
        self.better: ActorRef | None = None
        """The driver that this one gives way to."""

    @property
    def expires(self) -> float | None:
        """When it ends if nobody asks for the model, in seconds since the epoch; None if it does not."""
        return self._kept.expires

    @property
    def is_leaving(self) -> bool:
        """Whether it ends as soon as what was begun is done."""
        return bool(self.unloading) or self.better is not None

    def used(self) -> None:
        """The model is in use, or was until now."""
        self._kept.used(time.time())
        self._touched.set()

    def expect(self) -> None:
        """A caller was told that the model is ready."""
        self._kept.expect(time.time())
        self._touched.set()

    def expect_one_less(self) -> None:
        """One of those has come, or said that it does not."""
        self._kept.expect_one_less()
        self._touched.set()

    def wanted(self, keep_alive: float) -> None:
        """Stay, because the model is wanted again: a second copy beside one that still generates may not fit."""
        unloading, self.unloading = self.unloading, []
        for reply in unloading:
            reply.fail(
                ModelInUse(
                    f"the model {self._model} was asked for again before its generations were done, so it stays; "
                    "unload it again when it is not in use"
                )
            )
        self._kept.seconds = keep_alive

    async def over(self, is_busy: Callable[[], bool]) -> None:
        """Return when nobody has asked for the model for long enough, or an unload waits for nobody any more."""
        while (left := float("inf") if is_busy() else self._kept.left(time.time(), leaving=self.is_leaving)) > 0:
            self._touched = anyio.Event()
            with anyio.move_on_after(left):
                await self._touched.wait()
        reason = f"nobody asked for it for {self._kept.seconds:g} s"
        if self.is_leaving:
            reason = "as asked" if self.better is None else f"{self.better} serves it"
        logger.info("unloading {}: {}", self._model, reason)

    def ended(self) -> None:
        """Tell those who asked for it."""
        for reply in self.unloading:
            reply.answer(Done())
