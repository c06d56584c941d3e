"""What real nodes, in processes of their own, are put through. Each function says how it went, in numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of

CLUSTER = ("cluster.listen=127.0.0.1:0", "cluster.key=a secret of two", "roles.placement=even")
SECONDS = 60.0
"""How long nodes may take for what is not measured; a loaded machine is slow."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
_LOST = re.compile(r"is down|the link to node .* is gone")


@contextmanager
def pair(folder: Path, *settings: str) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Run two nodes that see each other."""
    with (
        node_process(folder, "a", *CLUSTER, *settings, env=ONE_THREAD, seconds=SECONDS) as a,
        node_process(folder, "b", *CLUSTER, *settings, peers_of(a), env=ONE_THREAD, seconds=SECONDS) as b,
    ):
        see_each_other(a, b)
        yield a, b


def see_each_other(a: NodeProcess, b: NodeProcess) -> None:
    """Wait until both nodes are up in the view of both."""
    eventually(
        lambda: (a.sees().get(b.name), b.sees().get(a.name)) == ("up", "up"), "the nodes see each other", SECONDS
    )


def losses(*nodes: NodeProcess) -> list[str]:
    """Return the lines in which nodes logged that another is down, or that its link is gone."""
    return [f"{node.name}: {line}" for node in nodes for line in node.log.splitlines() if _LOST.search(line)]


@contextmanager
def burned_cores() -> Iterator[None]:
    """Have every core computed on by two processes that never wait."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait()


def stop_for_a_while(folder: Path, seconds: float = 2.5, times: int = 2) -> list[str]:
    """Stop a node's process by SIGSTOP, each time for so long; return the losses that were logged."""
    with pair(folder) as (a, b):
        for stopped in (b, a)[:times]:
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                time.sleep(seconds)  # the disturbance itself
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            see_each_other(a, b)
            # If a session had ended, this is when the other side would have noticed.
            time.sleep(1)
        return losses(a, b)


def burn_cores(folder: Path, seconds: float) -> list[str]:
    """Burn all cores for so long; return the losses that were logged."""
    with pair(folder) as (a, b):
        with burned_cores():
            time.sleep(seconds)  # the disturbance itself
        see_each_other(a, b)
        return losses(a, b)


def kill(folder: Path) -> float:
    """Kill a node by SIGKILL; return the seconds until the other calls it down."""
    with pair(folder) as (a, b):
        killed = time.monotonic()
        b.process.kill()
        eventually(lambda: a.sees()["b"] == "down", "the killed node is down")
        return time.monotonic() - killed
