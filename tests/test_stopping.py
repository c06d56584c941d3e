"""How a node stops while something that cannot be interrupted goes on."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from runtime.testing.hub import StandInHub
from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, node_process

pytestmark = pytest.mark.slow


@contextmanager
def downloading(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node in the middle of a download that will not go on."""
    folder = tiny_llama(tmp_path / "repo", layers=2, hidden=128)
    env = {"HF_HUB_OFFLINE": "0"}
    with StandInHub({"org/tiny": folder}) as hub:
        hub.stall_after = 100_000
        try:
            with node_process(tmp_path, "a", env=env | hub.environment(tmp_path / "hub")) as node:

                def load() -> None:
                    with contextlib.suppress(httpx.HTTPError):
                        node.post("/runtime/v1/load", {"model": "org/tiny"})

                asking = threading.Thread(target=load)
                asking.start()
                assert hub.stalled.wait(30)
                yield node
                asking.join()
        finally:
            hub.resume.set()


def test_a_node_that_is_downloading_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with downloading(tmp_path) as node:
        assert node.terminate() == 0


def test_a_second_signal_ends_a_node_at_once(tmp_path: Path) -> None:
    with downloading(tmp_path) as node:
        node.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # two signals close together count as one
        assert node.process.poll() is None, "the test needs a node that takes longer to stop"
        began = time.monotonic()
        assert node.terminate() == -signal.SIGTERM
        assert time.monotonic() - began < 1.0
