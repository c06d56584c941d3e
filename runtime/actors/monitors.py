"""Who is told of whose end: exactly one ``Down`` for each monitor, whatever happens meanwhile."""

from __future__ import annotations

from runtime.actors.cell import Cell
from runtime.actors.items import Delivered
from runtime.actors.message import Down, Lane
from runtime.actors.outside import Outside
from runtime.actors.ref import ActorRef
from runtime.actors.signal import Gone, Unwatch, Watch
from runtime.errors import RuntimeFault


class Monitors:
    """The monitors of this node's actors, and those of other nodes on its actors.

    An actor that is named in two ways, by its incarnation and as whoever lives at its path, is watched twice.
    """

    def __init__(self, node: str, outside: Outside) -> None:
        self.watchers: dict[ActorRef, set[Cell]] = {}
        """Watched actor, here or elsewhere, as it was named, to the local actors that watch it; never empty."""
        self.remote: dict[ActorRef, set[str]] = {}
        """Local actor, as it was named, to the nodes that watch it; never empty."""
        self._node = node
        self._outside = outside

    def watch(self, cell: Cell, target: ActorRef, *, lives: bool) -> None:
        """Begin to watch; ``lives`` says whether a target of this node is there."""
        if cell.watching is None:
            cell.watching = set()
        if target in cell.watching:
            return
        if target.node == self._node and not lives:
            _notify(cell, Down(target, "noproc"))
            return
        cell.watching.add(target)
        watchers = self.watchers.setdefault(target, set())
        watchers.add(cell)
        if target.node != self._node and len(watchers) == 1:
            try:
                self._outside.send(target.node, Watch(target), Lane.CONTROL)
            except RuntimeFault:
                self.announce(target, "noconnection")

    def unwatch(self, cell: Cell, target: ActorRef) -> None:
        """Take a watch back, if there is one."""
        if cell.watching is None or target not in cell.watching:
            return
        cell.watching.discard(target)
        watchers = self.watchers[target]
        watchers.discard(cell)
        if not watchers:
            del self.watchers[target]
            if target.node != self._node:
                self._outside.send_or_log(target.node, Unwatch(target), Lane.CONTROL)

    def watch_for(self, node: str, target: ActorRef, *, lives: bool) -> None:
        """Watch a local actor for another node."""
        if lives:
            self.remote.setdefault(target, set()).add(node)
        else:
            self._outside.send_or_log(node, Gone(target, "noproc"), Lane.CONTROL)

    def unwatch_for(self, node: str, target: ActorRef) -> None:
        """Take a watch of another node back."""
        nodes = self.remote.get(target)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self.remote[target]

    def ended(self, cell: Cell, reason: str) -> None:
        """Tell of the end of a local actor, and forget what it watched."""
        for named in (cell.ref, ActorRef(self._node, cell.ref.path)):
            self.announce(named, reason)
            for node in self.remote.pop(named, ()):
                self._outside.send_or_log(node, Gone(named, reason), Lane.CONTROL)
        for target in list(cell.watching or ()):
            self.unwatch(cell, target)

    def announce(self, target: ActorRef, reason: str) -> None:
        """Tell everybody here who watches a target, once, and forget that they did."""
        for cell in self.watchers.pop(target, ()):
            if cell.watching is not None:
                cell.watching.discard(target)
            _notify(cell, Down(target, reason))

    def node_lost(self, node: str, reason: str) -> None:
        """Tell of the loss of a node's actors, and forget what it watched."""
        for target in [target for target in self.watchers if target.node == node]:
            self.announce(target, reason)
        for target in list(self.remote):
            self.unwatch_for(node, target)


def _notify(cell: Cell, down: Down) -> None:
    if not cell.stopping:
        cell.mailbox.put_system(Delivered(down, None))
