"""The documents say what the code has: whoever adds to one is told of the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.app import VERBS
from runtime.config.check import leaves
from runtime.config.load import load_settings
from runtime.spi import RequestFinished
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import HOOKS, ROLES, load_plugins
from runtime_crossing.architectures import CROSSING_MODULES
from runtime_dense.architectures import DENSE_MODULES, REFUSED_MODULES
from runtime_moe.architectures import MOE_MODULES
from tests.conftest import PluginWriter

ROOT = Path(__file__).parents[2]
OF_THE_MACHINE = {"node.name", "node.data_dir"}
"""Keys whose default is no constant."""
FIELDS = [
    "Status",
    "Affected components or models",
    "Severity",
    "Discovery date",
    "Description",
    "Error",
    "Root cause",
    "Affected code",
    "Workaround",
    "Potential fix",
    "References",
]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)


def rows(name: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table of a document."""
    for line in text_of(name).splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


# -- GGUF -------------------------------------------------------------------------------------------------------------


def test_every_architecture_and_pre_tokenizer_that_is_converted_is_in_the_list() -> None:
    from runtime_gguf.architectures import ARCHITECTURES
    from runtime_gguf.pretokenizers import SPLITS

    text = text_of("docs/gguf.md")
    section = re.search(r"^## Architectures\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    assert re.findall(r"^\| `([^`]+)` \|", section[1], re.MULTILINE) == ["general.architecture", *sorted(ARCHITECTURES)]
    named = re.search(r"^The pre-tokenizers: (.*?)\.$", text, re.DOTALL | re.MULTILINE)
    assert named is not None
    assert re.findall(r"`([^`]+)`", named[1]) == sorted(SPLITS)
    assert f"[{len(ARCHITECTURES)} architectures](docs/gguf.md)" in text_of("README.md")
    assert f"{len(ARCHITECTURES)} architectures are converted" in text_of("KNOWN_ISSUES.md")


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_in_the_reference(hook: str) -> None:
    assert any(cells[0] == f"`{hook}`" for cells in rows("docs/plugins.md"))


@pytest.mark.parametrize("provider", sorted(cls.__name__ for cls in ROLES.values()))
def test_every_provider_has_a_section_that_names_its_methods(provider: str) -> None:
    cls: Any = next(cls for cls in ROLES.values() if cls.__name__ == provider)
    section = re.search(rf"^### {provider}\n(.*?)^##", text_of("docs/plugins.md"), re.DOTALL | re.MULTILINE)
    assert section is not None
    public = {name for name in vars(cls) if not name.startswith("_")}
    assert {name for name in public if f"`{name}" not in section[1]} == set()


def test_every_method_of_the_engine_is_named() -> None:
    from runtime.spi import Engine

    text = text_of("docs/plugins.md")
    assert {name for name in vars(Engine) if not name.startswith("_") and f"`{name}" not in text} == set()


def test_the_table_of_built_in_plugins_is_what_is_installed() -> None:
    installed = {record.name: record for record in load_plugins().records if record.distribution == "mlx-actor-runtime"}
    table = text_of("docs/plugins.md").partition("## Built-in plugins")[2]
    listed = re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)
    assert {name for name, _ in listed} == set(installed)


def test_the_examples_are_plugins_that_load(site: Path, write_plugin: PluginWriter) -> None:
    examples = [block for block in blocks("docs/plugins.md", "python") if "@hookimpl" in block]
    assert len(examples) == 3
    for number, example in enumerate(examples):
        write_plugin(site, f"example{number}", example.replace('register("tally"', f'register("tally{number}"'))
    plugins = load_plugins()
    states = {each.name: (each.status, each.reason) for each in plugins.records if each.name.startswith("example")}
    assert states == {f"example{number}": ("loaded", "") for number in range(3)}
    assert "greet" in plugins.commands()


def test_the_first_example_does_what_it_is_said_to_do(
    site: Path, write_plugin: PluginWriter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_plugin(site, "tally", blocks("docs/plugins.md", "python")[0])
    telemetry = load_plugins().make("telemetry", "tally", {}, PluginContext(node="here", data_dir=tmp_path))
    telemetry.emit(RequestFinished("tiny", "stop", 5, 7, 0.1, 1.5))
    assert capsys.readouterr().out == "tiny: 7 tokens in 1.5 s\n"


# -- configuration ----------------------------------------------------------------------------------------------------


def written(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def test_every_key_has_a_row_with_its_default() -> None:
    listed = {cells[0].strip("`"): cells[2] for cells in rows("docs/configuration.md") if len(cells) >= 3}
    config = load_settings(environ={}, plugins=built_in())
    expected = {row.key: written(row.value) for row in config.rows()}
    known = {key: default for key, default in listed.items() if "." in key}
    assert known.keys() == expected.keys()
    constant = expected.keys() - OF_THE_MACHINE
    assert {key: known[key] for key in constant} == {key: expected[key] for key in constant}


def test_the_roles_that_the_reference_names_are_keys() -> None:
    keys = {".".join(path) for path, _ in leaves(type(load_settings(environ={}, plugins=built_in())))}
    named = set(re.findall(r"`(roles\.\w+)`", text_of("docs/plugins.md")))
    assert named
    assert named <= keys


def built_in() -> Any:
    """Return the plugins of the distribution itself, whatever else is installed beside it."""
    others = {each.name for each in load_plugins().records if each.distribution != "mlx-actor-runtime"}
    return load_plugins(others)


# -- readme -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readmes_table(verb: str) -> None:
    assert any(cells[0].startswith(f"`runtime {verb}") for cells in rows("README.md"))


def test_the_readme_names_no_verb_that_is_not_there() -> None:
    named = set(re.findall(r"(?:^|`)(?:uv run )?runtime ([a-z]+)", text_of("README.md"), re.MULTILINE))
    assert named
    assert named <= VERBS.keys()


RUNNING = DENSE_MODULES | MOE_MODULES | CROSSING_MODULES.keys()


@pytest.mark.parametrize("document", ["README.md", "docs/models.md", "CHANGELOG.md"])
def test_the_number_of_architectures_that_run_is_right(document: str) -> None:
    found = re.search(r"(\d+) of the (\d+) text architectures of mlx-lm", text_of(document))
    assert found is not None
    assert (int(found[1]), int(found[2])) == (len(RUNNING), len(RUNNING | REFUSED_MODULES.keys()))


@pytest.mark.parametrize(("family", "modules"), [("dense", DENSE_MODULES), ("moe", MOE_MODULES)])
def test_the_architectures_of_a_family_are_listed(family: str, modules: frozenset[str]) -> None:
    section = re.search(rf"^## .*the family `{family}`\n(.*?)\.\n", text_of("docs/models.md"), re.DOTALL | re.MULTILINE)
    assert section is not None
    assert re.findall(r"`([^`]+)`", section[1]) == sorted(modules, key=str.lower)


def test_what_crosses_a_cut_and_what_is_refused_is_listed() -> None:
    tables = {cells[0].strip("`"): cells[1] for cells in rows("docs/models.md")}
    tables.pop("Architecture")
    crossing = {name: crossing.what for name, crossing in CROSSING_MODULES.items()}
    assert tables == crossing | REFUSED_MODULES


def test_the_quick_start_is_the_promised_line_and_its_files_exist() -> None:
    commands = "".join(blocks("README.md", "sh"))
    assert "pip install uv && uv run runtime start --config configs/demo.toml\n" in commands
    named = re.findall(r"--config (\S+)", commands)
    assert set(named) == {"configs/demo.toml", "configs/two/a.toml", "configs/two/b.toml"}
    for name in named:
        load_settings([ROOT / name], environ={}, plugins=built_in())


def test_the_printed_lines_of_the_quick_start_are_those_that_start_prints(tmp_path: Path) -> None:
    config = load_settings([ROOT / "configs" / "demo.toml"], environ={}, plugins=built_in())
    context = PluginContext(node="laptop", data_dir=tmp_path)
    printed = "".join(blocks("README.md", "text"))
    for name in config.roles.frontends:
        frontend = built_in().make("frontend", name, config.plugin_settings, context)
        greeting = frontend.greeting(f"http://127.0.0.1:{config.http.port}", config.models.default, False)
        assert f"{greeting}\n" in printed


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("this is not a checkout: a source distribution has no .ci")
    assert "uv run pytest\n" in "".join(blocks("README.md", "sh"))
    assert "uv run pytest" in script.read_text(encoding="utf-8")


# -- everything -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_links_and_files_that_documents_name_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = {(document.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text)}
    # Paths in code are named from the root.
    named = set(re.findall(r"`((?:runtime|plugins|tests|configs)/[\w./]*\w\.(?:py|toml))", text))
    targets |= {ROOT / name for name in named}
    assert {str(target.relative_to(ROOT)) for target in targets if not target.exists()} == set()


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_tests_that_documents_name_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert f"def {test}(" in text_of(file)


def test_every_known_issue_has_every_field_in_order() -> None:
    entries = re.split(r"^### ", text_of("KNOWN_ISSUES.md").partition("## How to add")[0], flags=re.MULTILINE)[1:]
    assert len(entries) > 4
    for entry in entries:
        title = entry.partition("\n")[0]
        fields = re.findall(r"^- \*\*(.+?)\*\*: (\S)", entry, re.MULTILINE)
        assert [name for name, _ in fields] == FIELDS, title
        status = re.search(r"\*\*Status\*\*: (.+)", entry)
        assert status is not None
        assert status[1] in ("broken", "workaround", "fixed"), title


def test_nothing_that_is_served_comes_from_built_files() -> None:
    others = {
        file.relative_to(ROOT)
        for folder in ("runtime", "plugins")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert others == set()
    assert not [file for file in (ROOT / "runtime" / "http").glob("*.py") if "StaticFiles" in file.read_text()]
