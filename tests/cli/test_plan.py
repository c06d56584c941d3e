"""``runtime plan``: as a node plans, and for machines that a file names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.nodes_file import read_nodes
from runtime.errors import ConfigError, PlacementRefused
from runtime.spi import Link
from runtime.testing.models import tiny_llama
from tests.cli.test_client_verbs import run
from tests.http.scripted import MODEL, ScriptedEngine, serving

TWO = """
[[nodes]]
name = "studio"
backend = "metal"
available = "4GiB"
decode = 0.002

[[nodes]]
name = "mini"
available = "2GiB"
reserve = "0B"
decode = 0.001
prefill = 0.0001

[[links]]
between = ["studio", "mini"]
latency = 0.0004
bandwidth = "110MB"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "tiny", layers=6))


def planned(tmp_path: Path, model: str, *options: str, nodes: str = TWO) -> Any:
    file = tmp_path / "nodes.toml"
    file.write_text(nodes)
    done = CliRunner().invoke(app, ["plan", model, "--nodes", str(file), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# -- asking a node ----------------------------------------------------------------------------------------------------


async def test_a_nodes_plan_is_shown_with_its_reasons_and_both_tables() -> None:
    async with serving(ScriptedEngine()) as node:
        done = await run("plan", MODEL, "--url", node.url)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "smollm2:135m: 30 layers in float32, expanded, 4 sequences of 8192 tokens, "
        "prompts in chunks of 128 (memory is short for 512)",
        "- 30 layers cut for latency: alpha 20, beta 10",
        "- 12 ms a token",
        "- gamma would not make it faster",
        "",
        "STAGE  LAYERS  NEEDS    OF WHICH",
        "alpha  0-19    3.0 GiB  weights 2.0 GiB, KV cache 1.0 GiB",
        "beta   20-29   1.0 GiB  weights 1.0 GiB",
        "",
        "NODE   BACKEND  AVAILABLE  RESERVE  GRANTED  GRANTABLE  TAKES    A TOKEN ALONE",
        "alpha  cpu      5.0 GiB    1.0 GiB  0 B      4.0 GiB    3.0 GiB  10.5 ms",
        "beta   metal    2.0 GiB    0 B      1.0 GiB  2.0 GiB    1.0 GiB  -",
        "",
        "LINK   TO    LATENCY  BANDWIDTH",
        "alpha  beta  0.40 ms  110.0 MB/s",
    ]


async def test_a_nodes_plan_is_json_for_programs_and_the_context_is_passed_on() -> None:
    async with serving(ScriptedEngine()) as node:
        report = json.loads((await run("plan", MODEL, "--context", "512", "--json", "--url", node.url)).out)
        refused = await run("plan", MODEL, "--context", "1", "--url", node.url)
    assert report["context"] == 512
    assert (report["prefill_chunk"], report["prefill_chunk_asked"]) == (128, 512)
    assert [stage["last_layer"] for stage in report["stages"]] == [19, 29]
    assert refused.code == 1
    assert "What would help: more memory." in refused.err


# -- a file of nodes --------------------------------------------------------------------------------------------------


def test_a_plan_for_the_nodes_of_a_file_needs_no_node(tmp_path: Path, model: str) -> None:
    report = json.loads(planned(tmp_path, model, "--json", "--context", "300", "--set", "roles.placement=even"))
    assert (report["layers"], report["context"], report["sequences"]) == (6, 300, 4)
    # Two backends: the node with a GPU is tried by itself first.
    assert [(each["node"], each["first_layer"], each["last_layer"]) for each in report["stages"]] == [("studio", 0, 5)]
    assert report["dtype"] == "bfloat16"
    budgets = {node["name"]: node for node in report["nodes"]}
    assert budgets["studio"]["grantable"] == (4 << 30) - (512 << 20)
    assert budgets["mini"]["grantable"] == 2 << 30
    assert budgets["mini"]["takes"] == 0
    stage = report["stages"][0]
    assert stage["bytes"] == sum(part["bytes"] for part in stage["parts"]) == budgets["studio"]["takes"]


def test_a_chunk_that_is_shortened_for_want_of_memory_is_said_beside_what_was_asked(tmp_path: Path, model: str) -> None:
    def machine(available: str) -> str:
        return f'[[nodes]]\nname = "a"\navailable = "{available}"\nreserve = "0B"\n'

    assert "tokens, prompts in chunks of 512\n" in planned(tmp_path, model, "--context", "2048", nodes=machine("1GiB"))
    scarce = [
        planned(tmp_path, model, "--context", "2048", *json_too, nodes=machine("46MiB"))
        for json_too in ((), ("--json",))
    ]
    assert "tokens, prompts in chunks of 128 (memory is short for 512)\n" in scarce[0]
    report = json.loads(scarce[1])
    assert (report["context"], report["prefill_chunk"], report["prefill_chunk_asked"]) == (2048, 128, 512)


def test_speeds_and_links_of_the_file_are_weighed(tmp_path: Path, model: str) -> None:
    nodes = TWO.replace('"metal"', '"cpu"')
    text = planned(tmp_path, model, "--set", "roles.placement=minmax", nodes=nodes)
    assert "- 6 layers cut for latency: mini 6" in text
    assert "- studio is left out: with it a token would take" in text
    throughput = ["--set", "roles.placement=minmax", "--set", "plugins.minmax.objective=throughput"]
    throughput += ["--set", "plugins.minmax.prompt_ratio=0"]
    report = json.loads(planned(tmp_path, model, "--json", *throughput, nodes=nodes))
    assert {each["node"]: each["last_layer"] - each["first_layer"] + 1 for each in report["stages"]} == {
        "studio": 2,
        "mini": 4,
    }
    (link,) = report["links"]
    assert (link["latency"], link["bandwidth"]) == (0.0004, 110e6)
    assert {node["name"]: node["decode"] for node in report["nodes"]} == pytest.approx({"studio": 0.012, "mini": 0.006})


def test_the_speed_of_a_single_node_is_the_files(tmp_path: Path, model: str) -> None:
    nodes = '[[nodes]]\nname = "desk"\navailable = "4GiB"\ndecode = 0.0021\nprefill = 0.0\n'
    text = planned(tmp_path, model, "--set", "roles.placement=minmax", nodes=nodes)
    assert "- 6 layers cut for latency: desk 6\n- 12.6 ms a token\n" in text


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_where_no_speed_is_given_no_time_is_said(tmp_path: Path, model: str, objective: str) -> None:
    nodes = "".join(f'[[nodes]]\nname = "{name}"\navailable = "4GiB"\n' for name in ("one", "other"))
    options = ["--set", "roles.placement=minmax", "--set", f"plugins.minmax.objective={objective}"]
    for given in (nodes, nodes.partition('[[nodes]]\nname = "other"')[0]):
        text = planned(tmp_path, model, *options, nodes=given)
        assert f"- 6 layers cut for {objective}: o" in text
        assert " ms" not in text


def test_a_refusal_says_what_would_help(tmp_path: Path, model: str) -> None:
    file = tmp_path / "nodes.toml"
    # Too little for the context even by the shortest chunks, which are tried before anything is refused.
    file.write_text('[[nodes]]\nname = "a"\navailable = "34MiB"\nreserve = "0B"\n')
    with pytest.raises(PlacementRefused) as refusal:
        CliRunner().invoke(app, ["plan", model, "--nodes", str(file), "--context", "2048"], catch_exceptions=False)
    assert "does not fit" in refusal.value.message
    helped = re.search(r"What would help: a context of (\d+) tokens instead of 2048[.;]", refusal.value.message)
    assert helped is not None
    planned = ["plan", model, "--nodes", str(file), "--context", helped[1]]
    assert CliRunner().invoke(app, planned, catch_exceptions=False).exit_code == 0


def test_what_a_running_node_decides_cannot_be_set_here(model: str) -> None:
    done = CliRunner().invoke(app, ["plan", model, "--set", "roles.placement=even"])
    assert done.exit_code == 2
    assert "--config and --set go with --nodes" in done.output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nodes = [", "is not TOML"),
        ("", "nodes: Field required"),
        ("nodes = []", "nodes: Tuple should have at least 1 item"),
        ('[[nodes]]\nname = "a"\navailable = "lots"', "nodes.0.available"),
        ('[[nodes]]\nname = "a"\navailable = "1GiB"\nspeed = 3', "nodes.0.speed: Extra inputs"),
        ('[[nodes]]\nname = "a"\navailable = "1GiB"\n' * 2, "a more than once"),
        (TWO.replace('"mini"]', '"maxi"]'), "a link names maxi, which is not one of its nodes"),
        (TWO.replace('"110MB"', '"0B"'), "links.0.bandwidth"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "nodes.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_nodes(file)
    assert problem in refusal.value.message
    assert str(file) in refusal.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_nodes(tmp_path / "none.toml")


def test_a_link_of_the_file_goes_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "nodes.toml"
    file.write_text(TWO)
    link = Link(0.0004, 110e6)
    assert read_nodes(file).measures(6).links == {("studio", "mini"): link, ("mini", "studio"): link}
