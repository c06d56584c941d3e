"""Two real nodes are cut apart while both have clients, and joined again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.chaos.streams import bodies, read_stream
from benchmarks.chaos.wires import Wires
from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of
from tests.conftest import ONE_THREAD

pytestmark = pytest.mark.slow

# A silent node is called down after two seconds instead of seven.
SETTINGS = (
    "cluster.key=a key for splits",
    "cluster.longest_silence=1.5",
    "cluster.acceptable_pause=1.0",
    "cluster.probe_timeout=0.5",
    "models.context=1024",
    "models.sequences=8",
    "roles.placement=even",
)


def test_both_parts_of_a_split_cluster_finish_their_streams_and_one_driver_is_left_when_it_is_healed(
    tmp_path: Path,
) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    with Wires() as wires, ExitStack() as stack, ThreadPoolExecutor(4) as clients:

        def start(name: str, *found: str) -> NodeProcess:
            return stack.enter_context(
                node_process(tmp_path / "nodes", name, *SETTINGS, *wires.settings(name), *found, env=ONE_THREAD)
            )

        def drivers() -> list[str]:
            return [
                f"{node.name}{each['path']}"
                for node in (a, b)
                for each in node.get("actors")["actors"]
                if each["path"].startswith("/models/")
            ]

        a = start("a")
        b = start("b", peers_of(a))
        eventually(lambda: (a.sees().get("b"), b.sees().get("a")) == ("up", "up"), "the nodes see each other")
        a.load(model)
        assert set(a.layers(model)) == {"a", "b"}
        orders = bodies(model, 2, 400)
        expected = [told.text for told in clients.map(lambda body: read_stream(a.url, body), orders)]

        running = [clients.submit(read_stream, node.url, body) for node in (a, b) for body in orders]
        eventually(lambda: a.active() == 4, "the streams are under way")
        wires.cut_off("b", "a")
        eventually(lambda: len(drivers()) == 2, "each part has a driver of its own")
        # Joined while the streams still run.
        wires.heal()
        heard = [each.result() for each in running]
        assert [(told.finished, told.error) for told in heard] == [(True, None)] * 4
        assert [told.text for told in heard] == expected * 2

        eventually(lambda: (a.sees().get("b"), b.sees().get("a")) == ("up", "up"), "the nodes see each other again")
        eventually(lambda: len(drivers()) == 1, "one driver is left")
        for node in (a, b):
            eventually(lambda node=node: len(node.get("ps")["models"]) == 1, "all nodes know of that one only")  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
            assert read_stream(node.url, orders[1]).text == expected[1]
        assert len(drivers()) == 1
