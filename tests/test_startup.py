"""How a node starts, and how it does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.testing.processes import NodeFailed, environment, eventually, node_process, run_runtime
from tests.conftest import MODEL, PluginWriter

INFERENCE = {"mlx", "mlx_lm", "transformers", "numpy"}
SERVING = {"pydantic", "fastapi", "uvicorn", "httpx", "huggingface_hub", "websockets"}


@pytest.mark.parametrize(
    ("verb", "unwanted"),
    [
        (["--help"], INFERENCE | SERVING),
        (["version"], INFERENCE | SERVING - {"pydantic"}),  # typer parses a verb's options with it
        (["plugins"], INFERENCE | {"fastapi", "httpx"}),
        (["families"], INFERENCE | {"fastapi", "httpx"}),
        (["config", "show"], INFERENCE | {"fastapi", "httpx"}),
        (["status", "--url", "http://127.0.0.1:9"], INFERENCE),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_verb_imports_nothing_that_it_does_not_need(verb: list[str], unwanted: set[str]) -> None:
    probe = (
        "import sys; sys.argv = ['runtime', *sys.argv[1:]]\n"
        "from runtime.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('imported:', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *verb], capture_output=True, text=True, timeout=60, check=True, env=environment()
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "typer" in imported
    assert not imported & unwanted


GATE = """
import os, sys, time

def hold(event, arguments):
    if event == "import" and arguments[0] in ("mlx", "mlx.core"):
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.02)

sys.addaudithook(hold)
"""


@pytest.mark.slow
def test_a_node_answers_before_mlx_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GATE)
    gate = tmp_path / "gate"
    env = {"PYTHONPATH": str(tmp_path), "GATE": str(gate)}
    with node_process(tmp_path, "early", env=env) as node:
        assert node.get("status")["blas"] is None, "MLX cannot be imported yet"
        assert node.get("nodes")["nodes"][0]["name"] == "early"
        gate.touch()
        eventually(lambda: node.get("status")["blas"], "MLX is imported")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refused(*arguments: str) -> str:
    """Start a node that does not start, and return the line it says."""
    done = run_runtime("start", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    others = [line for line in done.stderr.splitlines() if line not in lines and " info " not in line]
    assert (len(lines), others) == (1, []), done.stderr
    return lines[0]


@pytest.mark.slow
def test_a_taken_port_is_told_with_the_key_to_change(tmp_path: Path, taken: int) -> None:
    home = ("--set", f"node.data_dir={tmp_path}", "--set", "http.port=0")
    http = refused(*home, "--set", f"http.port={taken}")
    assert f"port {taken}" in http
    assert "--set http.port=" in http
    cluster = refused(*home, "--set", f"cluster.listen=127.0.0.1:{taken}")
    assert f"127.0.0.1:{taken}" in cluster
    assert "cluster.listen" in cluster


@pytest.mark.slow
def test_a_configuration_that_cannot_be_used_is_told_with_the_place(tmp_path: Path) -> None:
    absent, broken, misspelt = tmp_path / "absent.toml", tmp_path / "broken.toml", tmp_path / "misspelt.toml"
    broken.write_text("[http\nport = 1\n")
    misspelt.write_text("[http]\nprot = 1\n")
    assert str(absent) in refused("--config", str(absent))
    assert str(broken) in refused("--config", str(broken))
    message = refused("--config", str(misspelt))
    assert str(misspelt) in message
    assert "http.prot" in message
    assert "http.port" in message


@pytest.mark.slow
def test_an_installed_plugin_is_served_like_a_built_in_one(sample_plugin: dict[str, str], tmp_path: Path) -> None:
    settings = ('roles.frontends=["openai","ollama","sample"]', "plugins.sample.greeting=good day")
    with node_process(tmp_path, "host", *settings, env=sample_plugin) as node:
        response = node.http.get(f"{node.url}/sample/hello")
        assert response.json() == {"greeting": "good day", "node": "host"}
        assert "sample_error" in node.http.get(f"{node.url}/sample/nothing").json()
        (record,) = (each for each in node.get("plugins")["plugins"] if each["name"] == "sample")
        assert (record["status"], record["version"]) == ("loaded", "0.3.1")


@pytest.mark.slow
def test_a_failed_plugin_stops_a_node_only_where_it_is_selected(write_plugin: PluginWriter, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write_plugin(site, "broken", "raise ValueError('no such luck')")
    env = {"PYTHONPATH": str(site)}
    with node_process(tmp_path, "host", env=env) as node:
        (record,) = (each for each in node.get("plugins")["plugins"] if each["name"] == "broken")
        assert record["status"] == "failed"
        assert "no such luck" in record["reason"]
    with (
        pytest.raises(NodeFailed, match="no such luck") as caught,
        node_process(tmp_path, "host", 'roles.frontends=["openai","broken"]', env=env),
    ):
        pass
    assert "exit code 1" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_an_installed_wheel_serves_without_any_file_but_its_modules(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        cwd=root,
        capture_output=True,
        timeout=120,
        check=True,
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], timeout=60, check=True)
    others = {
        path.suffix for path in site.rglob("*") if path.is_file() and ".dist-info" not in str(path.relative_to(site))
    } - {".py", ".typed"}
    assert not others, "nothing has to be built for a node but its modules"
    env = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import runtime, runtime_openai; print(runtime.__file__, runtime_openai.__file__)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(env),
    )
    assert all(file.startswith(str(site)) for file in where.stdout.split()), "it is the wheel's code that runs"
    with node_process(tmp_path, "headless", env=env) as node:
        assert node.http.get(f"{node.url}/").text == "Ollama is running"
        assert MODEL in [model["id"] for model in node.http.get(f"{node.url}/v1/models").json()["data"]]
        assert node.http.get(f"{node.url}/metrics").status_code == 200
