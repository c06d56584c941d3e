"""Slices of the hub's models against a stand-in hub: a real client, real HTTP, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.spi import LayerSpan, read_checkpoint
from runtime.spi.slices import slice_tensors
from runtime.testing.hub import TOKEN, StandInHub
from runtime.testing.models import tiny_llama

LAYERS = 8
SPAN = LayerSpan(3, 6, LAYERS)
PROGRAM = """
import json, os, pathlib, sys
from runtime.errors import RuntimeFault
from runtime.spi import LayerSpan
from runtime.spi.slices import slice_tensors
from runtime_hub.source import HubSource

home = pathlib.Path(os.environ["HF_HOME"])
source = HubSource(home / "parts")
start, stop, total = map(int, sys.argv[1:4])
told = []
try:
    files = source.open("org/tiny", lambda p: None)
    opened = len(files.checkpoint.absent)
    names = slice_tensors(files.checkpoint, LayerSpan(start, stop, total))
    found = files.fetch(names, lambda p: told.append([p.done, p.total]))
    answer = {
        "digest": found.digest,
        "opened": opened,
        "absent": sorted(found.absent),
        "bytes": sum(found.tensors[name].nbytes for name in names),
        "files": sorted({str(found.tensors[name].file.relative_to(home).parts[0]) for name in names}),
        "data": {name: found.tensors[name].file.open("rb").read()[slice(*found.tensors[name].range)].hex()[:64]
                 for name in sorted(names)},
    }
except RuntimeFault as fault:
    answer = {"error": type(fault).__name__, "message": fault.message}
print(json.dumps({**answer, "told": told, "local": [[l.name, l.path is None] for l in source.local()]}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 20 MB in three files, none of which ends where a slice does."""
    return tiny_llama(tmp_path_factory.mktemp("repo"), layers=LAYERS, hidden=256, vocab=2000, files=3, tied=False)


@pytest.fixture
def hub(folder: Path) -> Iterator[StandInHub]:
    with StandInHub({"org/tiny": folder}) as serving:
        yield serving


def start(hub: StandInHub, home: Path, span: LayerSpan, **more: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    arguments = map(str, (span.start, span.stop, span.total))
    environment = {**clean, **hub.environment(home), **more}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    answer: dict[str, Any] = json.loads(out)
    return answer


def fetch(hub: StandInHub, home: Path, span: LayerSpan, **more: str) -> dict[str, Any]:
    return end(start(hub, home, span, **more))


def contents(folder: Path, span: LayerSpan) -> dict[str, str]:
    """What the program prints as ``data``."""
    whole = read_checkpoint(folder)
    return {
        name: whole.tensors[name].file.read_bytes()[slice(*whole.tensors[name].range)].hex()[:64]
        for name in sorted(slice_tensors(whole, span))
    }


def test_a_slice_takes_hardly_more_bytes_than_it_has(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    answer = fetch(hub, tmp_path, SPAN)
    assert hub.sent <= 1.05 * answer["bytes"], "configuration, tokenizer and headers included"
    assert answer["data"] == contents(folder, SPAN)
    assert answer["digest"] == read_checkpoint(folder).digest
    assert answer["opened"] > len(answer["absent"]) > 0
    told = answer["told"]
    assert told == sorted(told), "one bar, that only grows"
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]
    assert answer["local"] == [["org/tiny", True]]

    sent = hub.sent
    offline = fetch(hub, tmp_path, SPAN, HF_HUB_OFFLINE="1")
    assert offline["data"] == answer["data"]
    assert hub.sent == sent
    more = fetch(hub, tmp_path, LayerSpan(0, 8, LAYERS), HF_HUB_OFFLINE="1")
    assert more["error"] == "ModelError"
    assert "HF_HUB_OFFLINE" in more["message"]


def test_files_that_are_wanted_whole_come_into_the_hubs_own_cache(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    answer = fetch(hub, tmp_path, LayerSpan.whole(LAYERS))
    assert answer["files"] == ["hub"]
    assert answer["absent"] == []
    assert answer["local"][0] == ["org/tiny", False]
    assert answer["data"] == contents(folder, LayerSpan.whole(LAYERS))
    told = answer["told"]
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_slice_of_some_whole_files_and_parts_of_others_has_one_bar(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    answer = fetch(hub, tmp_path, LayerSpan(0, 4, LAYERS))
    assert answer["files"] == ["hub", "parts"]
    assert answer["data"] == contents(folder, LayerSpan(0, 4, LAYERS))
    assert hub.sent <= 1.05 * answer["bytes"]
    told = answer["told"]
    assert len({total for _, total in told}) == 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


def test_a_process_that_dies_costs_no_more_than_what_it_had_under_way(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    hub.stall_after = 1_000_000
    dying = start(hub, tmp_path, SPAN)
    assert hub.stalled.wait(30)
    dying.kill()
    dying.communicate()
    hub.resume.set()
    answer = fetch(hub, tmp_path, SPAN)
    assert answer["data"] == contents(folder, SPAN)
    assert hub.sent < 2 * answer["bytes"]


def test_two_processes_that_want_the_same_fetch_it_once(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    both = [start(hub, tmp_path, SPAN) for _ in range(2)]
    answers = [end(process) for process in both]
    assert [answer["data"] for answer in answers] == [contents(folder, SPAN)] * 2
    ranges = [(seen.path, seen.range) for seen in hub.seen if seen.method == "GET" and seen.range is not None]
    assert len(ranges) == len(set(ranges))


def test_a_connection_that_breaks_is_asked_again(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    assert fetch(hub, tmp_path, SPAN)["data"] == contents(folder, SPAN)
    assert hub.cut_after is None


def test_an_address_that_has_expired_is_asked_for_again_and_no_other_host_sees_the_token(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    hub.signed_uses = 5
    assert fetch(hub, tmp_path, SPAN, HF_TOKEN=TOKEN)["data"] == contents(folder, SPAN)
    assert len(hub.uses) > 3, "more addresses than files"
    assert {seen.authorization for seen in hub.seen if seen.path.startswith("/signed/")} == {None}
    assert {seen.authorization for seen in hub.seen if "/resolve/" in seen.path} == {f"Bearer {TOKEN}"}


def test_a_server_without_ranges_sends_the_whole(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    hub.ranges = False
    answer = fetch(hub, tmp_path, SPAN)
    assert answer["data"] == contents(folder, SPAN)
    assert answer["absent"] == []


def test_a_server_that_sends_more_than_it_was_asked_for_is_not_read_to_the_end(hub: StandInHub, tmp_path: Path) -> None:
    hub.excess = 100 << 20
    answer = fetch(hub, tmp_path, SPAN)
    assert answer["error"] == "ModelError"
    assert "sends more" in answer["message"]
    assert hub.sent < hub.excess


def test_a_part_that_comes_packed_is_refused_before_it_is_unpacked(hub: StandInHub, tmp_path: Path) -> None:
    hub.packs = True
    answer = fetch(hub, tmp_path, SPAN)
    assert answer["error"] == "ModelError"
    assert "sends it packed (gzip)" in answer["message"]


def test_contents_that_are_not_what_the_hub_says_are_refused(hub: StandInHub, tmp_path: Path) -> None:
    repository = hub.repositories["org/tiny"]
    repository.hashes = dict.fromkeys(repository.hashes, "0" * 64)
    answer = fetch(hub, tmp_path, LayerSpan.whole(LAYERS))
    assert answer["error"] == "CheckpointCorrupt"
    assert "came with other contents than the hub says" in answer["message"]
