"""A node that is lost while it loads, or after which too little memory is left: no client waits for ever."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.chaos.streams import Told, bodies, read_stream
from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of
from tests.conftest import ONE_THREAD, PluginWriter

pytestmark = pytest.mark.slow

MOST_SECONDS = 15.0
"""Within which a stream goes on, or ends with an error."""
SETTINGS = (
    "cluster.listen=127.0.0.1:0",
    "cluster.key=a key for losses",
    "models.context=1024",
    'roles.families=["slow"]',
)
NO_MEMORY = "models.memory_reserve=1TB"
SLOW = '''
import os
import time
from pathlib import Path

from runtime.spi import hookimpl
from runtime_dense.family import DenseFamily


class Slow(DenseFamily):
    """Dense models, which take as long to load as a file is there."""

    def load(self, *args, **kwargs):
        Path(os.environ["LOADING"]).touch()
        while Path(os.environ["LOAD_WHILE"]).exists():
            time.sleep(0.01)
        super().load(*args, **kwargs)


@hookimpl
def register_family(register):
    register("slow", lambda settings, context: Slow())
'''


class Cluster:
    """Real nodes, whose loads can be held up, and one client."""

    def __init__(self, folder: Path, write_plugin: PluginWriter, stack: ExitStack) -> None:
        self.folder = folder
        self.model = str(tiny_llama(folder / "tiny"))
        self.nodes: dict[str, NodeProcess] = {}
        self._stack = stack
        self._client = stack.enter_context(ThreadPoolExecutor(1))
        (folder / "plugins").mkdir()
        write_plugin(folder / "plugins", "slow", SLOW)

    def start(self, name: str, *settings: str) -> NodeProcess:
        path = os.pathsep.join(filter(None, (str(self.folder / "plugins"), os.environ.get("PYTHONPATH"))))
        env = {
            **ONE_THREAD,
            "PYTHONPATH": path,
            "LOADING": str(self.folder / f"loading-{name}"),
            "LOAD_WHILE": str(self.folder / f"load-while-{name}"),
        }
        peers = (peers_of(*self.nodes.values()),) if self.nodes else ()
        self.nodes[name] = self._stack.enter_context(
            node_process(self.folder / "nodes", name, *SETTINGS, *peers, *settings, env=env)
        )
        return self.nodes[name]

    def wait_linked(self) -> None:
        for node in self.nodes.values():
            eventually(lambda node=node: len(node.sees()) == len(self.nodes), "the nodes see each other")  # type: ignore[misc]  # mypy cannot infer a lambda's defaults

    def hold_up_loads(self, name: str) -> None:
        (self.folder / f"loading-{name}").unlink(missing_ok=True)
        (self.folder / f"load-while-{name}").touch()

    def wait_loading(self, name: str) -> None:
        eventually((self.folder / f"loading-{name}").exists, f"node {name} loads")

    def read(self, tokens: int) -> Future[Told]:
        """Begin to read a stream at node a."""
        return self._client.submit(read_stream, self.nodes["a"].url, bodies(self.model, 1, tokens)[0])

    def freeze(self, name: str) -> None:
        """Stop a process; it goes on when the test ends."""
        process = self.nodes[name].process
        process.send_signal(signal.SIGSTOP)
        self._stack.callback(process.send_signal, signal.SIGCONT)


@pytest.mark.parametrize("loss", ["kill", "freeze"])
def test_a_node_that_is_lost_while_it_loads_for_a_lost_one_is_done_without(
    loss: str, tmp_path: Path, write_plugin: PluginWriter
) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, write_plugin, stack)
        a, b, c = (cluster.start(name, "roles.placement=even") for name in "abc")
        cluster.wait_linked()
        a.load(cluster.model)
        whole = cluster.read(400).result()
        assert whole.finished
        stream = cluster.read(400)
        eventually(lambda: a.active() == 1, "the stream is under way")
        cluster.hold_up_loads("b")
        c.kill()
        cluster.wait_loading("b")
        lost = time.monotonic()
        if loss == "kill":
            b.kill()
        else:
            cluster.freeze("b")
        told = stream.result()
        assert (told.finished, told.error, told.text) == (True, None, whole.text)
        assert told.pause < MOST_SECONDS
        assert time.monotonic() - lost < MOST_SECONDS + 5  # with what was left of the text
        assert set(a.layers(cluster.model)) == {"a"}
        (tmp_path / "load-while-b").unlink()


@pytest.mark.parametrize("loss", ["kill", "freeze while loading"])
def test_a_stream_that_nobody_has_memory_to_go_on_with_ends_with_an_error_in_time(
    loss: str, tmp_path: Path, write_plugin: PluginWriter
) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, write_plugin, stack)
        a = cluster.start("a", NO_MEMORY)
        cluster.start("b")
        if loss == "freeze while loading":
            cluster.start("c")
        cluster.wait_linked()
        a.load(cluster.model)
        holder = min(a.layers(cluster.model))  # or two of them do; one that is lost is enough
        assert holder != "a"
        stream = cluster.read(1000)
        eventually(lambda: a.active() == 1, "the stream is under way")
        if loss == "freeze while loading":
            second = "b" if holder == "c" else "c"
            cluster.hold_up_loads(second)
            cluster.nodes[holder].kill()
            cluster.wait_loading(second)
            cluster.freeze(second)
        else:
            cluster.nodes[holder].kill()
        lost = time.monotonic()
        told = stream.result()
        assert time.monotonic() - lost < MOST_SECONDS
        assert told.error is not None
        assert "interrupted after" in told.error
        assert "could not be resumed" in told.error
        assert "does not fit" in told.error
        # What was told before it is the beginning of the text, and the node goes on.
        assert a.active() == 0
        assert a.get("status")["memory_reserved"] == 0
        for flag in tmp_path.glob("load-while-*"):
            flag.unlink()
