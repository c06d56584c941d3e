"""The verbs that say which models run and prove that they do, run as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.tiny import TINY_MODULES, tiny_config
from tests.cli.test_command_line import run


def test_every_architecture_is_listed_with_its_family_or_a_reason() -> None:
    found = json.loads(run("families", "--json").stdout)
    assert [each["module"] for each in found] == sorted(TINY_MODULES)
    assert sum(each["family"] is not None for each in found) >= 115
    assert all(each["how"] for each in found)
    assert {each["module"] for each in found if each["family"] is None} == {"iquestloopcoder", "olmo"}


def test_the_list_is_a_table_for_people_and_follows_the_configuration() -> None:
    done = run("families", "--set", 'roles.families=["moe"]')
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("mixtral")).split() == ["mixtral", "moe", "as", "it", "is"]
    assert "no family that is configured runs it" in next(line for line in lines if line.startswith("llama "))


def test_a_stored_model_is_checked_from_its_files(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", quantize=4, tied=False, files=2, sliding=8)
    done = run("check", str(folder), "--cuts", "1,3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["weights"], report["layers"], report["exact"]) == ("loaded", 4, True)
    assert [each["cuts"] for each in report["cuts"]] == [[1], [3], [1, 3]]
    assert all(each["difference"] == each["batch_difference"] == 0.0 for each in report["cuts"])


def test_a_lone_configuration_is_enough_with_random_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("hunyuan")))
    done = run("check", str(tmp_path / "config.json"), "--random-weights")
    assert done.returncode == 0, done.stderr
    assert "whole and cut are to the last bit the same" in done.stdout
    assert "hidden, keys, values" in done.stdout
    assert run("check", str(tmp_path)).returncode != 0


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        ({"model_type": "qwen4"}, (), "nearest it has: qwen"),
        ({}, ("--cuts", "0"), "a model of 4 layers is cut before 1 to 3, not 0"),
        ({}, ("--cuts", "two"), "give numbers of layers such as 1,5,9"),
        ({"vocab_size": 1 << 30}, (), "lower the number of layers"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_told_in_one_line(
    tmp_path: Path, config: dict[str, object], arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config("llama"), **config}))
    done = run("check", str(tmp_path), "--random-weights", *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_difference_is_told_and_is_the_exit_status(tmp_path: Path) -> None:
    """A layer whose output depends on more than what a plain cut carries, run by a family that does not know it."""
    plugin = tmp_path / "wrong.py"
    plugin.write_text(
        "from runtime.spi import LayerCalls, hookimpl\n"
        "from runtime_crossing.calls import SkippedEmbedding\n"
        "from runtime_crossing.family import CrossingFamily\n"
        "class Forgetful(SkippedEmbedding):\n"
        "    adapts = False\n"
        "class Wrong(CrossingFamily):\n"
        "    def layer_calls(self, config):\n"
        "        return Forgetful()\n"
        "import runtime_crossing.family\n"
        "runtime_crossing.family.CrossingFamily = Wrong\n"
        "from runtime.cli import main\n"
        "main()\n"
    )
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("talkie")))
    import subprocess
    import sys

    command = [sys.executable, str(plugin), "check", str(tmp_path), "--random-weights", "--cuts", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["exact"] is False
    assert report["cuts"][0]["difference"] > 0.01
