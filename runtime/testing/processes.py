"""Real nodes, each in a process of its own, for tests of what crosses processes.

    with node_process(tmp_path, "a") as a, node_process(tmp_path, "b", peers_of(a)) as b:
        assert {node["name"] for node in a.get("nodes")["nodes"]} == {"a", "b"}

Ports are free ones that the nodes choose and tell. What a node writes is kept in its folder; a failure quotes it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

READY_SECONDS = 60.0
"""How long a node may take until it answers; a machine that runs the checks of several projects is slow."""
STOP_SECONDS = 60.0
"""How long a node that was asked to stop may take: it waits for up to 20 s itself, and a slow machine takes longer."""
POLL_SECONDS = 0.02

_COMMAND = (sys.executable, "-c", "from runtime.cli import main; main()")
_GREETING = re.compile(r"^Node .* at (http://\S+)", re.MULTILINE)

T = TypeVar("T")


class NodeFailed(Exception):
    """A node did not start, or not in time. The text has its log."""


def eventually(read: Callable[[], T | None], what: str, seconds: float = READY_SECONDS) -> T:
    """Call ``read`` until it returns something true, and return that.

    Raises:
        TimeoutError: it did not within ``seconds``; the text says ``what`` was waited for, and the last value.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what} (the last value was {value!r})")
        time.sleep(POLL_SECONDS)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would configure a node, offline, and with ``extra``."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("RUNTIME_")}
    return {**own, "HF_HUB_OFFLINE": "1", **(extra or {})}


def run_runtime(
    *arguments: str, env: Mapping[str, str] | None = None, seconds: float = READY_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run the command ``runtime`` to its end.

    Raises:
        subprocess.TimeoutExpired: it did not end within ``seconds``.
    """
    return subprocess.run(  # noqa: S603 - the product's own command, with a test's arguments
        [*_COMMAND, *arguments], capture_output=True, text=True, timeout=seconds, check=False, env=environment(env)
    )


class NodeProcess:
    """A node in a process of its own. Made by :func:`node_process`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], out: Path, log: Path) -> None:
        self.name = name
        self.url = ""
        """Where clients reach it; empty until it is ready."""
        self.process = process
        self._out = out
        self._log = log
        self.http = httpx.Client(trust_env=False, timeout=60)

    @property
    def output(self) -> str:
        """What it wrote on standard output."""
        return self._out.read_text(encoding="utf-8")

    @property
    def log(self) -> str:
        """What it wrote on standard error."""
        return self._log.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """``host:port`` where it listens for peers; empty if it is alone."""
        return str(self.get("nodes")["nodes"][0]["address"])

    def get(self, path: str) -> Any:
        """Return the JSON at ``/runtime/v1/<path>``."""
        return self.http.get(f"{self.url}/runtime/v1/{path}").raise_for_status().json()

    def post(self, path: str, body: dict[str, Any] | bytes) -> httpx.Response:
        """Send a body (bytes as they are) to a path of any API, and return the response, whatever it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(self.url + path, content=content, headers={"Content-Type": "application/json"})

    def load(self, model: str) -> None:
        """Have a model loaded.

        Raises:
            NodeFailed: it was refused.
        """
        response = self.post("/runtime/v1/load", {"model": model})
        last = json.loads(response.text.splitlines()[-1])
        if not last.get("done"):
            raise NodeFailed(f"node {self.name} does not load {model}: {last}")

    def unload(self, model: str) -> None:
        """Have a model let go of."""
        self.post("/runtime/v1/unload", {"model": model}).raise_for_status()

    def sees(self) -> dict[str, str]:
        """The state of every node that it is or was linked to, and its own."""
        return {node["name"]: node["state"] for node in self.get("nodes")["nodes"] if node["state"] != "unreached"}

    def layers(self, model: str) -> dict[str, tuple[int, int]]:
        """First and last layer of a model by the node that holds them; empty if it is not served."""
        for served in self.get("ps")["models"]:
            if served["name"] == model:
                return {stage["node"]: (stage["first_layer"], stage["last_layer"]) for stage in served["stages"]}
        return {}

    def active(self) -> int:
        """Generations in progress in its cluster."""
        return sum(served["active"] for served in self.get("ps")["models"])

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it answers.

        Raises:
            NodeFailed: it ended, or did not answer in time.
        """
        try:
            eventually(self._answers, f"node {self.name} answers", seconds)
        except TimeoutError as error:
            raise NodeFailed(f"{error}; its log:\n{self.log}") from None

    def terminate(self) -> int:
        """Ask it to stop, wait until it has, and return its exit code.

        Raises:
            NodeFailed: it did not stop in time, and was killed.
        """
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeFailed(f"node {self.name} did not stop within {STOP_SECONDS:g} s; its log:\n{self.log}") from None

    def kill(self) -> None:
        """End it without a word, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Stop it if it runs, and let go of what it holds here.

        Raises:
            NodeFailed: it was asked to stop, and did not end well.
        """
        try:
            if self.process.poll() is None and (code := self.terminate()) != 0:
                raise NodeFailed(f"node {self.name} stopped with exit code {code}; its log:\n{self.log}")
        finally:
            self.http.close()

    def _answers(self) -> bool:
        code = self.process.poll()
        if code is not None:
            raise NodeFailed(f"node {self.name} ended with exit code {code}; its log:\n{self.log}")
        greeting = _GREETING.search(self.output)
        if greeting is None:
            return False
        self.url = greeting[1]
        try:
            return bool(self.get("status")["node"] == self.name)
        except httpx.TransportError:
            return False


@contextmanager
def node_process(
    folder: Path,
    name: str,
    *settings: str,
    env: Mapping[str, str] | None = None,
    seconds: float = READY_SECONDS,
) -> Iterator[NodeProcess]:
    """Run a node for the length of the block.

    Args:
        folder: where its data and logs go. Nodes may share one, and then convert a model once.
        name: the node's name.
        settings: ``a.b=c`` each, as for ``--set``; the later over the earlier, and all over the free HTTP port and
            the data folder that it is given.
        env: variables on top of this process's own.
        seconds: how long it may take to be ready.

    Raises:
        NodeFailed: it does not start, or does not end well; with its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [f"node.name={name}", f"node.data_dir={folder / 'data'}", "http.port=0", *settings]
    started = time.time_ns()  # the same name may be started again
    out, log = folder / f"{name}-{started}.out", folder / f"{name}-{started}.log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - likewise
            [*_COMMAND, "start", *(part for setting in arguments for part in ("--set", setting))],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment(env),
        )
    node = NodeProcess(name, process, out, log)
    try:
        node.wait_ready(seconds)
        yield node
    finally:
        node.close()


def peers_of(*nodes: NodeProcess) -> str:
    """The setting that makes a node dial these nodes."""
    return f"plugins.static.peers={json.dumps([node.address for node in nodes])}"
