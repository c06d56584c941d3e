"""Fixtures that tests of several parts share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings

from runtime.testing.processes import NodeProcess, environment, eventually, node_process, peers_of

# A busy machine makes any example slow now and then; what must be fast is measured elsewhere.
settings.register_profile("runtime", deadline=None)
settings.load_profile("runtime")


MODEL = "smollm2:135m"
CAPITAL = "What is the capital of France?"
STORY = "Write a story about a fox."
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""OpenBLAS's threads wait for each other by spinning: with fewer free cores than threads they are many times slower."""
os.environ.update(ONE_THREAD)  # before this process has a BLAS: other tests run beside its own
SAMPLE = Path(__file__).parent / "sample_plugin"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have tests that share nodes run in one process, so that the nodes are started and the model is converted once."""
    for item in items:
        if isinstance(item, pytest.Function) and "nodes_folder" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("nodes"))


def pytest_collection_finish() -> None:
    """Spare garbage collections what was imported: letting go of a model is one, and tests do it hundreds of times."""
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, which is what the runtime runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def sample_plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the sample distribution, as its users would, and return the environment of processes that have it.

    It is built from a copy, so that nothing is left in the source tree, with the build back end of the project's own
    environment, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("sample")
    source, target = folder / "source", folder / "site"
    shutil.copytree(SAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is not None:
        install = [uv, "pip", "install", "--python", sys.executable, "--offline", "--no-config"]
    else:
        install = [sys.executable, "-m", "pip", "install", "--no-index"]
    install += ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"the sample plugin does not install:\n{done.stdout}{done.stderr}"
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{path}" if path else str(target)}


class PluginWriter(Protocol):
    """Writes a distribution with one plugin into a folder, as an installer would leave it."""

    def __call__(
        self, folder: Path, name: str, source: str, *, module: str | None = None, distribution: str | None = None
    ) -> None: ...


@pytest.fixture
def write_plugin() -> PluginWriter:
    """Return a function that puts a plugin into a folder; what has the folder on its path has it installed."""

    def write(
        folder: Path, name: str, source: str, *, module: str | None = None, distribution: str | None = None
    ) -> None:
        module = module or f"plugin_{name}"
        distribution = distribution or f"dist-{name}"
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[runtime.plugins]\n{name} = {module}\n")

    return write


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that this process has on its path, for plugins to be installed into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for module in set(sys.modules) - before:
        if module.startswith("plugin_"):
            del sys.modules[module]


@pytest.fixture(scope="session")
def nodes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all nodes that serve the embedded model, so that it is converted once."""
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="session")
def node(nodes_folder: Path) -> Iterator[NodeProcess]:
    """Run a node with the embedded model, which stays loaded."""
    settings = ("models.context=2048", "models.keep_alive=-1")
    with node_process(nodes_folder, "solo", *settings, env=ONE_THREAD) as node:
        yield node


@pytest.fixture(scope="session")
def two_nodes(nodes_folder: Path) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Run two nodes that share a cluster key and serve the embedded model together, each with half of it."""
    settings = (
        "cluster.listen=127.0.0.1:0",
        "cluster.key=a secret of two",
        "models.context=2048",
        "roles.placement=even",
    )
    with (
        node_process(nodes_folder, "a", *settings, env=ONE_THREAD) as a,
        node_process(nodes_folder, "b", *settings, peers_of(a), env=ONE_THREAD) as b,
    ):
        eventually(lambda: (a.sees().get("b"), b.sees().get("a")) == ("up", "up"), "the nodes see each other")
        yield a, b


@dataclass(frozen=True)
class Reference:
    """What mlx-lm itself generates, greedily."""

    prompt: list[int]
    tokens: list[int]
    texts: list[str]
    """Of each token alone."""
    logprobs: list[float]
    text: str
    """Of all tokens but the one that ends it."""


@pytest.fixture(scope="session")
def converted(node: NodeProcess, nodes_folder: Path) -> Path:
    """Return the folder that the embedded model was converted into: the weights that the nodes load."""
    node.load(MODEL)
    (folder,) = (path for path in (nodes_folder / "data" / "gguf").iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="session")
def chats(converted: Path) -> dict[str, Reference]:
    """What mlx-lm says to two chats with the embedded model: it ends the first, and 64 tokens do not end the second."""
    prompts = (CAPITAL, STORY)
    jobs = [{"messages": [{"role": "user", "content": prompt}], "max_tokens": 64} for prompt in prompts]
    return dict(zip(prompts, ask_mlx_lm(converted, *jobs), strict=True))


def ask_mlx_lm(folder: Path, *jobs: dict[str, Any]) -> list[Reference]:
    """Have mlx-lm answer jobs, see ``mlx_lm_reference.py``, in a process of its own."""
    script = Path(__file__).with_name("mlx_lm_reference.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(ONE_THREAD),
    )
    assert done.returncode == 0, done.stderr
    return [Reference(**each) for each in json.loads(done.stdout)]
