"""The command ``runtime``, run as a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import __version__
from runtime.cli.app import VERBS, Verbs, app

RUNTIME = str(Path(sys.executable).with_name("runtime"))


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RUNTIME_")} | (env or {})
    return subprocess.run([RUNTIME, *arguments], capture_output=True, text=True, timeout=30, check=False, env=environ)


def test_version_is_printed_by_the_verb_and_by_the_option() -> None:
    assert run("version").stdout == f"runtime {__version__}\n"
    assert run("--version").stdout == f"{__version__}\n"
    assert json.loads(run("version", "--json").stdout)["runtime"] == __version__


def test_help_lists_every_built_in_verb() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb, summary in VERBS.items():
        assert verb in done.stdout
        assert summary in " ".join(done.stdout.split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_says_what_a_verbs_own_help_says(verb: str) -> None:
    import typer

    group = typer.main.get_command(app)
    assert isinstance(group, Verbs)
    command = group.get_command(None, verb)
    assert command is not None
    assert (command.help or "").partition("\n")[0] == VERBS[verb]


def test_help_imports_nothing_slow() -> None:
    probe = (
        "import sys; sys.argv = ['runtime', '--help']\n"
        "from runtime.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "slow = {'pydantic', 'fastapi', 'httpx', 'rich', 'loguru', 'mlx', 'mlx_lm', 'transformers', 'numpy'}\n"
        "print('slow:', sorted(slow & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "slow: []"


def test_an_unknown_verb_is_told_with_the_nearest() -> None:
    done = run("plugns")
    assert done.returncode == 2
    assert "there is no command 'plugns'; did you mean 'plugins'?" in done.stderr


def test_a_fault_is_one_line_for_each_problem_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[http]\nport = 'x'\nprot = 1\n")
    done = run("config", "show", "--config", str(file))
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f'error: {file}: http.port is "x"; it should be a valid integer',
        f"error: {file}: http.prot is not a key; the nearest is http.port",
    ]
    assert "Traceback" not in done.stderr


def test_config_show_tells_each_values_origin_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[node]\nname = 'a'\n[cluster]\nkey = 'from-file'\n")
    roles = ["--set", "roles.frontends=[]", "--set", "roles.telemetry=[]", "--set", 'roles.sources=["folder"]']
    env = {"RUNTIME_HTTP__API_KEY": "from-environment"}
    done = run("config", "show", "--json", "--config", str(file), "--set", "http.port=1", *roles, env=env)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["node.name"] == {"value": "a", "origin": str(file)}
    assert shown["http.port"] == {"value": 1, "origin": "--set"}
    assert shown["http.api_key"] == {"value": "********", "origin": "RUNTIME_HTTP__API_KEY"}
    assert shown["cluster.key"] == {"value": "********", "origin": str(file)}
    assert shown["models.default"] == {"value": "smollm2:135m", "origin": "default"}
    table = run("config", "show", "--config", str(file), *roles, env=env)
    assert "from-file" not in table.stdout + done.stdout
    assert "from-environment" not in table.stdout + done.stdout


def test_an_installed_third_party_plugin_is_listed_and_adds_its_verb(sample_plugin: dict[str, str]) -> None:
    listed = json.loads(run("plugins", "--json", env=sample_plugin).stdout)
    (record,) = [each for each in listed if each["name"] == "sample"]
    assert record == {
        "name": "sample",
        "module": "runtime_sample_echo",
        "distribution": "runtime-sample-echo",
        "version": "0.3.1",
        "hooks": ["register_settings", "register_frontend", "register_commands"],
        "status": "loaded",
        "reason": "",
    }
    assert "Say hello from the sample plugin." in run("--help", env=sample_plugin).stdout
    assert run("sample-hello", "--name", "you", env=sample_plugin).stdout == "hello, you\n"


def test_a_disabled_plugin_is_not_imported_and_adds_nothing(sample_plugin: dict[str, str]) -> None:
    env = {**sample_plugin, "RUNTIME_PLUGINS__SAMPLE__ENABLED": "false"}
    assert "sample-hello" not in run("--help", env=env).stdout
    (record,) = [each for each in json.loads(run("plugins", "--json", env=env).stdout) if each["name"] == "sample"]
    assert (record["status"], record["hooks"]) == ("disabled", [])


def test_a_plugin_cannot_take_the_name_of_a_built_in_verb(tmp_path: Path, write_plugin: Any) -> None:
    write_plugin(
        tmp_path,
        "taker",
        """
        from runtime.spi import Command, hookimpl
        @hookimpl
        def register_commands(register):
            register(Command("version", lambda: print("taken")))
        """,
    )
    env = {"PYTHONPATH": str(tmp_path)}
    assert run("version", env=env).stdout == f"runtime {__version__}\n"
    done = run("--help", env=env)
    assert "warning: plugin taker offers the command 'version', which is built in; refused" in done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("ModelNotFound('no such model')", 1, "error: no such model\n"),
        ("KeyboardInterrupt", 130, ""),
        ("RuntimeError('a bug')", 1, "Traceback"),
    ],
)
def test_how_a_verb_ends_is_told_by_its_exit_code(
    tmp_path: Path, write_plugin: Any, raised: str, code: int, said: str
) -> None:
    write_plugin(
        tmp_path,
        "ender",
        f"""
        from runtime.errors import ModelNotFound
        from runtime.spi import Command, hookimpl
        def end():
            raise {raised}
        @hookimpl
        def register_commands(register):
            register(Command("end", end))
        """,
    )
    done = run("end", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == code
    assert done.stderr == said if said != "Traceback" else done.stderr.startswith(said)


@pytest.mark.parametrize("word", ["nan", "inf"])
def test_a_temperature_that_is_no_number_is_refused_in_one_line(word: str) -> None:
    done = run("run", "m", "hi", "--temperature", word)
    assert done.returncode != 0
    assert done.stderr == f"error: --temperature is {word}; give a number such as 0.7\n"
