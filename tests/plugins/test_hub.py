"""The hub source against a stand-in hub: a real client, real HTTP, in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelError
from runtime.spi import read_checkpoint
from runtime.testing.hub import TOKEN, StandInHub
from runtime.testing.models import tiny_llama
from runtime_hub.cache import check_space
from runtime_hub.remote import fault
from runtime_hub.snapshot import RepoName, is_wanted, missing_files

SCRIPT = """
import json, os, pathlib, sys
from runtime.errors import RuntimeFault
from runtime_hub.source import HubSource
seen = []
source = HubSource(pathlib.Path(os.environ["HF_HOME"]) / "parts")
try:
    path = str(source.fetch(sys.argv[1], lambda p: seen.append([p.step, p.done, p.total])))
    answer = {"path": path}
except RuntimeFault as fault:
    answer = {"error": type(fault).__name__, "message": fault.message}
listed = [[l.name, l.source, l.bytes] for l in source.local() if (l.path / 'config.json').is_file()]
print(json.dumps({**answer, "progress": seen, "local": listed}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what a model needs, and with what must never be downloaded."""
    path = tiny_llama(tmp_path_factory.mktemp("repo"), layers=2, files=2, hidden=128)
    (path / "modeling_evil.py").write_text("raise SystemExit")
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    (path / "onnx").mkdir()
    (path / "onnx" / "config.json").write_text("{}")
    return path


@pytest.fixture
def hub(folder: Path) -> Iterator[StandInHub]:
    with StandInHub({"org/tiny": folder}, gated={"org/gated": folder}) as serving:
        yield serving


def _environment(hub: StandInHub, home: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**clean, **hub.environment(home), **more}


def _fetch(hub: StandInHub, home: Path, name: str, **more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env=_environment(hub, home, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_snapshot_is_fetched_with_progress_and_listed(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    answer = _fetch(hub, tmp_path, "org/tiny")
    fetched = Path(answer["path"])
    assert read_checkpoint(fetched).tensors.keys() == read_checkpoint(folder).tensors.keys()
    wanted = {file.name for file in folder.iterdir() if file.suffix in (".json", ".safetensors")}
    assert {file.name for file in fetched.iterdir()} == wanted
    total = sum((folder / name).stat().st_size for name in wanted)
    steps, done, totals = zip(*answer["progress"], strict=True)
    assert set(steps) == {"downloading"}
    assert set(totals) == {total}
    assert (done[0], done[-1]) == (0, total)
    assert list(done) == sorted(done)
    assert answer["local"] == [["org/tiny", "hub", total]]


def test_what_is_cached_is_not_downloaded_again(hub: StandInHub, tmp_path: Path) -> None:
    first = _fetch(hub, tmp_path, "org/tiny")
    hub.seen.clear()
    assert _fetch(hub, tmp_path, "org/tiny")["path"] == first["path"]
    assert not [seen for seen in hub.seen if seen.method == "GET" and "/resolve/" in seen.path]


def test_a_cached_snapshot_serves_without_a_network(folder: Path, tmp_path: Path) -> None:
    with StandInHub({"org/tiny": folder}) as hub:
        online = _fetch(hub, tmp_path, "org/tiny")
        forbidden = _fetch(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
    down = _fetch(hub, tmp_path, "org/tiny")
    assert forbidden["path"] == down["path"] == online["path"]


def test_an_incomplete_cache_does_not_pass_for_a_model(hub: StandInHub, tmp_path: Path) -> None:
    path = Path(_fetch(hub, tmp_path, "org/tiny")["path"])
    (path / "model-00002-of-00002.safetensors").unlink()
    answer = _fetch(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
    assert answer["error"] == "ModelError"
    assert answer["local"] == []
    assert _fetch(hub, tmp_path, "org/tiny")["path"] == str(path)


def test_without_a_network_and_without_a_copy_it_says_so(hub: StandInHub, tmp_path: Path) -> None:
    offline = _fetch(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
    assert offline["error"] == "ModelError"
    assert "HF_HUB_OFFLINE" in offline["message"]
    down = _fetch(hub, tmp_path, "org/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert down["error"] == "ModelError"
    assert "http://127.0.0.1:9 cannot be reached" in down["message"]


def test_a_missing_repository_and_a_missing_revision_are_named(hub: StandInHub, tmp_path: Path) -> None:
    missing = _fetch(hub, tmp_path, "org/nothing")
    assert missing["error"] == "ModelNotFound"
    assert f"{hub.url} has no repository org/nothing" in missing["message"]
    revision = _fetch(hub, tmp_path, "org/tiny@v9")
    assert revision["error"] == "ModelNotFound"
    assert "no revision v9" in revision["message"]


def test_a_revision_can_be_asked_for_by_its_commit(hub: StandInHub, tmp_path: Path) -> None:
    commit = hub.repositories["org/tiny"].commit
    answer = _fetch(hub, tmp_path, f"org/tiny@{commit}")
    assert Path(answer["path"]).name == commit
    assert [listed[0] for listed in answer["local"]] == [f"org/tiny@{commit}"]


def test_a_gated_repository_says_what_opens_it_and_a_token_does(hub: StandInHub, tmp_path: Path) -> None:
    refused = _fetch(hub, tmp_path, "org/gated", HF_TOKEN="hf_wrong")
    assert refused["error"] == "ModelError"
    assert "accept its licence" in refused["message"]
    assert "HF_TOKEN" in refused["message"]
    assert "hf_wrong" not in refused["message"]
    assert "path" in _fetch(hub, tmp_path, "org/gated", HF_TOKEN=TOKEN)


def test_a_repository_without_safetensors_is_refused(hub: StandInHub, tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file in other.glob("*.safetensors"):
        file.unlink()
    with StandInHub({"org/pickles": other}) as serving:
        answer = _fetch(serving, tmp_path / "home", "org/pickles")
    assert answer["error"] == "ModelUnsupported"
    assert "only .bin files" in answer["message"]
    assert not [seen for seen in serving.seen if "/resolve/" in seen.path]


def test_a_connection_that_breaks_is_asked_again(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    answer = _fetch(hub, tmp_path, "org/tiny")
    asked = [seen.path for seen in hub.seen if seen.method == "GET" and seen.path.endswith(".safetensors")]
    assert len(asked) == 3, "two files, one of them twice"
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (Path(answer["path"]) / name).read_bytes() == (folder / name).read_bytes()
    _, done, total = answer["progress"][-1]
    assert done == total


def test_a_process_that_dies_in_the_middle_leaves_nothing_that_harms(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    hub.stall_after = 100_000
    dying = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "org/tiny"], env=_environment(hub, tmp_path), stdout=subprocess.DEVNULL
    )
    assert hub.stalled.wait(30)
    dying.kill()
    dying.wait()
    hub.resume.set()
    answer = _fetch(hub, tmp_path, "org/tiny")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
        assert (Path(answer["path"]) / name).read_bytes() == (folder / name).read_bytes()


def test_a_damaged_file_in_the_cache_is_fetched_again(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    path = Path(_fetch(hub, tmp_path, "org/tiny")["path"])
    weights = path / "model-00001-of-00002.safetensors"
    with weights.resolve().open("r+b") as stream:
        stream.truncate(1000)
    _fetch(hub, tmp_path, "org/tiny")
    assert weights.read_bytes() == (folder / weights.name).read_bytes()


def test_too_little_room_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="org/huge needs 953674316 MiB more on the disk"):
        check_space(RepoName("org/huge", "main"), 10**15, tmp_path / "not" / "yet" / "there")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (PermissionError(errno.EACCES, "denied", "/cache/x"), "/cache/x may not be written"),
        (TimeoutError("slow"), "cannot be reached for org/name"),
    ],
    ids=["disk full", "not allowed", "network"],
)
def test_what_the_machine_refuses_is_told_apart(error: OSError, message: str) -> None:
    found = fault(RepoName("org/name", "main"), error)
    assert isinstance(found, ModelError)
    assert message in found.message


@pytest.mark.parametrize("name", ["org/name", "a/b", "Org-1/Na.me_2", "org/name@main", "org/name@refs/pr/1"])
def test_names_of_repositories_are_claimed(name: str) -> None:
    parsed = RepoName.parse(name)
    assert parsed is not None
    assert name in (parsed.repo, f"{parsed.repo}@{parsed.revision}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "smollm2:135m",
        "a/b/c",
        "/org/name",
        "./name",
        "org/..",
        "../name",
        "org/na--me",
        "org/name@",
        "o/n\n",
    ],
)
def test_other_names_are_left_to_others(name: str) -> None:
    assert RepoName.parse(name) is None


def test_code_and_pickles_are_never_wanted() -> None:
    for name in ("modeling.py", "pytorch_model.bin", "model.pt", "model.ckpt", "x/config.json", "weights.gguf"):
        assert not is_wanted(name)
    for name in ("config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "merges.txt"):
        assert is_wanted(name)


def test_an_index_that_cannot_be_read_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert missing_files(tmp_path) == ["model.safetensors.index.json"]
