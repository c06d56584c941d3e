"""A node whose compute thread hangs where there is no like to judge it by: in a load, and in the first steps after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.chaos.streams import bodies, read_stream
from runtime.inference.step_times import FIRST
from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeFailed, NodeProcess, eventually, node_process, peers_of
from tests.conftest import ONE_THREAD, PluginWriter

pytestmark = pytest.mark.slow

PATIENCE = 0.5
SETTINGS = (
    "cluster.listen=127.0.0.1:0",
    "cluster.key=a key for hangs",
    "models.context=1024",
    "roles.placement=even",
    f"models.step_patience={PATIENCE}",
    'roles.families=["hanging"]',
)
HANGING = '''
import os
import time
from pathlib import Path

from runtime.spi import hookimpl
from runtime_dense.family import DenseFamily


def wait(flag):
    while Path(os.environ[flag]).exists():
        time.sleep(0.01)


class Hanging(DenseFamily):
    """Dense models that wait in a load, or in a step, for as long as a file is there, as a device that hangs would."""

    def load(self, model, checkpoint, span, options, progress):
        def halfway(done, total):
            progress(done, total)
            if done > total // 2:
                wait("HANG_LOAD_WHILE")

        super().load(model, checkpoint, span, options, halfway)

    def build(self, config, tensors=None):
        model = super().build(config, tensors)

        class Model(type(model)):
            def __call__(self, *args, **kwargs):
                wait("HANG_STEP_WHILE")
                return super().__call__(*args, **kwargs)

        model.__class__ = Model
        return model


@hookimpl
def register_family(register):
    register("hanging", lambda settings, context: Hanging())
'''


class Nodes:
    """Two nodes, of which ``b`` can be made to hang."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._folder = folder
        self.model = str(tiny_llama(folder / "tiny"))
        self.a = self._start(stack, "a")
        self.b = self._start(stack, "b", self.a)
        eventually(lambda: (self.a.sees().get("b"), self.b.sees().get("a")) == ("up", "up"), "the nodes see each other")

    def flag(self, where: str, name: str = "b") -> Path:
        """Return the file that makes a node hang for as long as it is there."""
        return self._folder / f"hang-{where}-{name}"

    def reason(self) -> str:
        """Why ``b`` cannot compute, by what ``a`` was told."""
        entry = next(node for node in self.a.get("nodes")["nodes"] if node["name"] == "b")
        return str(entry["reason"]) if entry["state"] == "unhealthy" else ""

    def _start(self, stack: ExitStack, name: str, *peers: NodeProcess) -> NodeProcess:
        path = os.pathsep.join(filter(None, (str(self._folder / "plugins"), os.environ.get("PYTHONPATH"))))
        flags = {f"HANG_{where.upper()}_WHILE": str(self.flag(where, name)) for where in ("load", "step")}
        found = (peers_of(*peers),) if peers else ()
        env = {**ONE_THREAD, "PYTHONPATH": path, **flags}
        return stack.enter_context(node_process(self._folder / "nodes", name, *SETTINGS, *found, env=env))


@pytest.fixture
def nodes(tmp_path: Path, write_plugin: PluginWriter) -> Iterator[Nodes]:
    (tmp_path / "plugins").mkdir()
    write_plugin(tmp_path / "plugins", "hanging", HANGING)
    with ExitStack() as stack:
        yield Nodes(stack, tmp_path)


def test_a_node_that_hangs_while_it_loads_is_unhealthy_until_it_answers_and_models_go_elsewhere(nodes: Nodes) -> None:
    a, model = nodes.a, nodes.model
    (order,) = bodies(model, 1, 40)
    nodes.flag("load").touch()
    with pytest.raises(NodeFailed, match=r"node_unhealthy.*node b is unhealthy: loading layers .* has not come back"):
        a.load(model)
    assert "loading layers" in nodes.reason()
    told = read_stream(a.url, order)
    assert (told.finished, told.error) == (True, None)
    assert set(a.layers(model)) == {"a"}

    nodes.flag("load").unlink()
    eventually(lambda: a.sees()["b"] == "up", "the node is healthy again")
    a.unload(model)
    a.load(model)
    assert set(a.layers(model)) == {"a", "b"}
    assert read_stream(a.url, order).text == told.text


def test_a_node_that_hangs_in_its_very_first_step_is_unhealthy_and_the_stream_goes_on_elsewhere(nodes: Nodes) -> None:
    a, model = nodes.a, nodes.model
    (order,) = bodies(model, 1, 40)
    a.load(model)
    assert set(a.layers(model)) == {"a", "b"}
    nodes.flag("step").touch()
    told = read_stream(a.url, order)
    assert (told.finished, told.error) == (True, None)
    assert f"a step has not come back from the compute thread for {FIRST * PATIENCE:.0f}." in nodes.reason()
    assert set(a.layers(model)) == {"a"}

    nodes.flag("step").unlink()
    eventually(lambda: a.sees()["b"] == "up", "the node is healthy again")
    assert read_stream(a.url, order).text == told.text
