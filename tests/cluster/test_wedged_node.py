"""A node whose compute thread hangs: it lives, answers its peers, and computes nothing."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.chaos.streams import bodies, read_stream
from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of
from tests.conftest import ONE_THREAD, PluginWriter

pytestmark = pytest.mark.slow

SETTINGS = (
    "cluster.listen=127.0.0.1:0",
    "cluster.key=a key for hangs",
    "models.context=1024",
    "roles.placement=even",
    "models.step_patience=1",
    'roles.families=["hanging"]',
)
HANGING = '''
import os
import time
from pathlib import Path

from runtime.spi import hookimpl
from runtime_dense.family import DenseFamily


class Hanging(DenseFamily):
    """Dense models, whose forward pass waits for as long as a file is there, as a device that hangs would."""

    def build(self, config, tensors=None):
        model = super().build(config, tensors)
        flag = Path(os.environ["HANG_WHILE"])

        class Model(type(model)):
            def __call__(self, *args, **kwargs):
                while flag.exists():
                    time.sleep(0.01)
                return super().__call__(*args, **kwargs)

        model.__class__ = Model
        return model


@hookimpl
def register_family(register):
    register("hanging", lambda settings, context: Hanging())
'''


def metric(node: NodeProcess, name: str) -> float:
    """Return a sample of ``/metrics``."""
    lines = node.http.get(f"{node.url}/metrics").raise_for_status().text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize("victim", ["a", "b"], ids=["the driver's", "another"])
def test_a_node_whose_compute_thread_hangs_is_unhealthy_until_it_answers_and_streams_go_on_elsewhere(
    victim: str, tmp_path: Path, write_plugin: PluginWriter
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    write_plugin(plugins, "hanging", HANGING)
    model = str(tiny_llama(tmp_path / "tiny"))

    def flag(name: str) -> Path:
        return tmp_path / f"hang-{name}"

    def start(name: str, *peers: NodeProcess) -> NodeProcess:
        path = os.pathsep.join(filter(None, (str(plugins), os.environ.get("PYTHONPATH"))))
        env = {**ONE_THREAD, "PYTHONPATH": path, "HANG_WHILE": str(flag(name))}
        found = (peers_of(*peers),) if peers else ()
        return stack.enter_context(node_process(tmp_path / "nodes", name, *SETTINGS, *found, env=env))

    with ExitStack() as stack, ThreadPoolExecutor(2) as clients:
        a = start("a")
        nodes = {"a": a, "b": start("b", a)}
        b = nodes["b"]
        eventually(lambda: (a.sees().get("b"), b.sees().get("a")) == ("up", "up"), "the nodes see each other")
        a.load(model)
        orders = bodies(model, 2, 400)
        expected = [told.text for told in clients.map(lambda body: read_stream(a.url, body), orders)]
        assert set(a.layers(model)) == {"a", "b"}

        running = [clients.submit(read_stream, a.url, body) for body in orders]
        eventually(lambda: a.active() == 2, "the streams are under way")
        flag(victim).touch()
        hung = time.monotonic()
        heard = [each.result() for each in running]
        assert [(told.finished, told.error, told.text) for told in heard] == [(True, None, text) for text in expected]
        assert max(told.pause for told in heard) < 10
        assert time.monotonic() - hung > 1, "they were done before the node hung: make them longer"

        # Everybody knows, and says why; the node's work is where it can be done.
        witness = b if victim == "a" else a
        entry = next(node for node in witness.get("nodes")["nodes"] if node["name"] == victim)
        assert entry["state"] == "unhealthy"
        assert "compute thread" in entry["reason"]
        own = next(node for node in nodes[victim].get("nodes")["nodes"] if node["state"] == "self")
        assert "compute thread" in own["reason"]
        assert metric(witness, 'runtime_peers{state="unhealthy"}') == metric(witness, "runtime_node_healthy") == 1
        assert metric(nodes[victim], "runtime_node_healthy") == 0
        assert set(a.layers(model)) == {witness.name}
        assert nodes[victim].get("status")["nodes"] == 2
        # Also for those who ask the unhealthy node itself.
        assert read_stream(nodes[victim].url, orders[0]).text == expected[0]

        # It answers again, and is used again.
        flag(victim).unlink()
        eventually(lambda: witness.sees()[victim] in ("up", "self"), "the node is healthy again")
        assert metric(nodes[victim], "runtime_node_healthy") == 1
        eventually(lambda: metric(witness, 'runtime_peers{state="unhealthy"}') == 0, "its peer shows it, too")
        a.unload(model)
        a.load(model)
        assert set(a.layers(model)) == {"a", "b"}
        assert read_stream(a.url, orders[1]).text == expected[1]
        a.unload(model)
        for node in nodes.values():
            eventually(
                lambda node=node: not [each for each in node.get("actors")["actors"] if "/stages/" in each["path"]],  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                "no stage is left",
            )
