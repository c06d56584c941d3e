"""Which models are served where: each node's own entries, and what the others have told. Pure."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from runtime.actors import ActorRef
from runtime.spi import LayerSpan


class ServedState(StrEnum):
    """Whether a model can be used."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


_PREFERENCE = {ServedState.READY: 0, ServedState.LOADING: 1, ServedState.UNLOADING: 2}


class ServedStage(msgspec.Struct, frozen=True):
    """One stage of a served model."""

    node: str
    span: LayerSpan
    bytes: int


class ServedModel(msgspec.Struct, frozen=True):
    """A model that a driver serves, or is about to."""

    model: str
    digest: str
    driver: ActorRef
    stages: tuple[ServedStage, ...]
    context: int
    """Tokens a sequence, prompt and completion together."""
    expires: float | None
    """When it is unloaded if nobody asks for it, in seconds since the epoch; None: never."""
    active: int
    """Generations in progress."""
    state: ServedState = ServedState.READY


class ServedModels:
    """What is served in the cluster, as one node knows it. Every node owns the entries of its own drivers."""

    def __init__(self, node: str) -> None:
        self.version = 0
        """Of this node's own entries; it grows with each change."""
        self._node = node
        self._own: dict[str, ServedModel] = {}
        self._others: dict[str, tuple[int, int, tuple[ServedModel, ...]]] = {}
        """Node to the boot, the version and the entries it last told of."""

    def own(self) -> tuple[ServedModel, ...]:
        """This node's entries, by model."""
        return tuple(entry for _, entry in sorted(self._own.items()))

    def publish(self, entry: ServedModel) -> bool:
        """Add or replace an entry of this node; return whether that changes anything."""
        if entry.driver.node != self._node:
            raise ValueError(
                f"{entry.driver} does not live on {self._node}, so its entry is not {self._node}'s to tell"
            )
        if self._own.get(entry.model) == entry:
            return False
        self._own[entry.model] = entry
        self.version += 1
        return True

    def withdraw(self, model: str, driver: ActorRef | None = None) -> bool:
        """Drop this node's entry of a model (only if it is this driver's, when one is named); return whether it was."""
        entry = self._own.get(model)
        if entry is None or (driver is not None and entry.driver != driver):
            return False
        del self._own[model]
        self.version += 1
        return True

    def update(self, node: str, boot: int, version: int, entries: tuple[ServedModel, ...]) -> bool:
        """Take all entries of another node, unless newer ones are known; return whether that changes anything."""
        if node == self._node:
            return False
        known = self._others.get(node)
        if known is not None and (known[0], known[1]) >= (boot, version):
            return False
        mine = tuple(entry for entry in entries if entry.driver.node == node)
        self._others[node] = (boot, version, mine)
        return (() if known is None else known[2]) != mine

    def lose(self, node: str) -> bool:
        """Drop what a lost node told; return whether that changes anything."""
        return self._others.pop(node, (0, 0, ()))[2] != ()

    def entries(self) -> tuple[ServedModel, ...]:
        """Everything that is served, by model and node."""
        every = [*self._own.values(), *(entry for told in self._others.values() for entry in told[2])]
        return tuple(sorted(every, key=lambda entry: (entry.model, entry.driver.node)))

    def lookup(self, model: str) -> ServedModel | None:
        """Return the entry to use: a ready one before others, one of this node before others, then by node name."""
        matches = [entry for entry in self.entries() if entry.model == model]
        return min(
            matches,
            key=lambda entry: (_PREFERENCE[entry.state], entry.driver.node != self._node, entry.driver.node),
            default=None,
        )
