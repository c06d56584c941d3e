"""Keeps trying one address until there is a link to whoever listens there, and again when that link is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from enum import StrEnum

import msgspec
from loguru import logger

from runtime.errors import ConfigError, ProtocolError
from runtime.wire.handshake import LASTING, Refusal, Refused
from runtime.wire.limits import Limits
from runtime.wire.link import Link


class DialState(StrEnum):
    """Where the dialling of an address stands."""

    DIALLING = "dialling"
    LINKED = "linked"
    FAILED = "failed"
    """The last attempt failed; another follows."""
    SELF = "self"
    """The address is the node's own, and is left alone."""


class DialStatus(msgspec.Struct, frozen=True):
    """What came of dialling an address."""

    address: str
    state: DialState
    node: str | None = None
    """Who listens there, once known."""
    reason: str | None = None
    """Why the last attempt failed."""
    lasting: bool = False
    """Whether a person has to do something about it."""


def pause_after(failures: int, lasting: bool, limits: Limits, chance: float) -> float:
    """Return the seconds to wait after so many failures in a row; ``chance``, in [0, 1), takes off up to a half.

    The jitter keeps nodes that failed together from coming back in step.
    """
    if lasting:
        longest = limits.retry_lasting
    else:
        longest = min(limits.retry_most, limits.retry_first * 2.0 ** min(failures - 1, 16))
    return longest * (1 - chance / 2)


class Dialling:
    """The dialling of one address, as a task."""

    def __init__(
        self,
        address: str,
        limits: Limits,
        attempt: Callable[[str], Awaitable[Link]],
        existing: Callable[[str], Link | None],
    ) -> None:
        """``attempt`` makes a link, ``existing`` finds the one to the node at an address if it is there already."""
        self.status = DialStatus(address, DialState.DIALLING)
        self._address = address
        self._limits = limits
        self._attempt = attempt
        self._existing = existing
        self._failures = 0
        self._logged: str | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"dial {address}")

    async def stop(self) -> None:
        """Dial no more. A link that is there stays."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self.status.state is not DialState.SELF:
            try:
                link = self._existing(self._address) or await self._attempt(self._address)
            except Refused as refusal:
                self._refused(refusal)
            except ConfigError as fault:
                self._failed(fault.message, lasting=True)
            except TimeoutError:
                self._failed(f"no answer within {self._limits.handshake:g} s", lasting=False)
            except (OSError, ProtocolError) as error:
                self._failed(_text(error), lasting=False)
            else:
                self._failures = 0
                self._logged = None
                self.status = DialStatus(self._address, DialState.LINKED, link.peer.node)
                await link.closed.wait()
                # No pause after a link that held would let two nodes that drop each other spin.
                self._failures = 1
                self.status = DialStatus(self._address, DialState.DIALLING, link.peer.node)
            if self.status.state is not DialState.SELF:
                chance = random.random()  # noqa: S311 - jitter, not a secret
                await asyncio.sleep(pause_after(self._failures, self.status.lasting, self._limits, chance))

    def _refused(self, refusal: Refused) -> None:
        match refusal.reason:
            case Refusal.SELF:
                self.status = DialStatus(self._address, DialState.SELF)
                logger.debug("{} is this node's own address", self._address)
            case Refusal.DUPLICATE:
                # The link is there, or will be in a moment: the next round finds it.
                self._failures = 1
            case reason:
                self._failed(refusal.message, reason in LASTING, refusal.peer.node if refusal.peer else None)

    def _failed(self, reason: str, lasting: bool, node: str | None = None) -> None:
        self._failures += 1
        self.status = DialStatus(self._address, DialState.FAILED, node or self.status.node, reason, lasting)
        if reason != self._logged:
            self._logged = reason
            level = "ERROR" if lasting else "INFO"
            logger.log(level, "node at {} is not reached: {}", self._address, reason)


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__
