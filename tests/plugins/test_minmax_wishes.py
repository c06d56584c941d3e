"""Placement by minmax does what the user wants, and refuses what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runtime.config.load import load_settings
from runtime.errors import ConfigError, PlacementRefused
from runtime_minmax.settings import MinmaxSettings
from tests.plugins.minmax_cases import a_node, a_request, placed, reason, three


def test_an_excluded_node_gets_nothing_and_the_reason_says_so() -> None:
    assert placed(three(), exclude=("a",)) == (("b", 0, 6),)
    assert "plugins.minmax.exclude leaves out a" in reason(three(), exclude=("a",))
    with pytest.raises(PlacementRefused, match="exclude leaves out a, b, c, and nobody else is up"):
        placed(three(), exclude=("a", "b", "c"))


def test_a_model_is_placed_among_its_own_nodes() -> None:
    assert placed(three(), only={"m": ("c",)}) == (("c", 0, 6),)
    assert placed(three(), only={"another": ("c",)}) == (("a", 0, 6),)
    assert "plugins.minmax.only leaves out a, b" in reason(three(), only={"m": ("c",)})


def test_a_node_gets_no_more_layers_than_it_may_have() -> None:
    cut = placed(three(), max_layers={"a": 2, "b": 1})
    assert {name: stop - start for name, start, stop in cut} == {"a": 2, "b": 1, "c": 3}


def test_pinned_layers_are_where_they_are_wanted_whatever_it_costs() -> None:
    cut = placed(three(), pin={"m": {"c": "0-1", "b": "5"}})
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    assert (holder[0], holder[1], holder[5]) == ("c", "c", "b")
    assert placed(three(), pin={"another": {"c": "0-1"}}) == (("a", 0, 6),)


def test_pins_are_kept_where_not_every_order_is_tried() -> None:
    names = [f"n{index:02}" for index in range(12)]
    request = a_request(24, tuple(a_node(name) for name in names))
    cut = placed(request, pin={"m": {"n09": "0-3", "n02": "20"}})
    holder = {layer: name for name, start, stop in cut for layer in range(start, stop)}
    assert (holder[0], holder[3], holder[20]) == ("n09", "n09", "n02")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({"pin": {"m": {"z": "0-1"}}}, "wants layers 0-1 on z, which is not among the nodes"),
        ({"pin": {"m": {"a": "4-9"}}}, "wants layers 4-9 on a, and the model has 6 layers"),
        ({"pin": {"m": {"a": "0-3", "b": "3-5"}}}, "wants layers 3-5 on b, and some of them on a"),
        ({"pin": {"m": {"a": "0-3"}}, "max_layers": {"a": 2}}, "max_layers allows it 2"),
        ({"exclude": ("b",), "pin": {"m": {"b": "0"}}}, "wants layers 0-0 on b, which is not among the nodes"),
    ],
)
def test_wishes_that_contradict_each_other_are_refused_by_name(configured: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementRefused, match=message):
        placed(three(), **configured)


@pytest.mark.parametrize(
    "configured",
    [
        {"pin": {"m": {"a": "1-"}}},
        {"pin": {"m": {"a": "5-1"}}},
        {"max_layers": {"a": -1}},
        {"prompt_ratio": -1.0},
        {"objective": "both"},
    ],
)
def test_settings_that_mean_nothing_are_refused(configured: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MinmaxSettings(**configured)


def test_wishes_are_read_from_files_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        '[plugins.minmax]\nexclude = ["laptop"]\n'
        "[plugins.minmax.max_layers]\ndesk = 12\n"
        '[plugins.minmax.only]\n"org/large" = ["studio", "tower"]\n'
        '[plugins.minmax.pin."org/large"]\nstudio = "0-15"\n'
    )
    read = load_settings([file], ["plugins.minmax.objective=throughput"], environ={}).plugin_settings["minmax"]
    assert isinstance(read, MinmaxSettings)
    assert (read.exclude, read.max_layers, read.objective) == (("laptop",), {"desk": 12}, "throughput")
    assert read.only == {"org/large": ("studio", "tower")}
    assert read.pin == {"org/large": {"studio": "0-15"}}
    with pytest.raises(ConfigError, match=r"plugins\.minmax\.pin"):
        load_settings([file], ['plugins.minmax.pin={m={a="x"}}'], environ={})
