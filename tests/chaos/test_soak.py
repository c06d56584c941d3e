"""Streams over three real nodes that are killed, frozen and cut off: nobody gets another text, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.leftovers import leaks
from benchmarks.chaos.soak import DISTURBANCES, soak
from runtime.testing.models import tiny_llama

pytestmark = pytest.mark.slow

# A frozen node is called down after a second and a half instead of seven.
BRISK = ("cluster.longest_silence=1.5", "cluster.acceptable_pause=1.0", "cluster.probe_timeout=0.5")


def test_streams_outlive_whatever_befalls_a_node_word_for_word_and_leave_nothing_behind(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    rounds = soak(tmp_path, model, seconds=0, streams=8, tokens=400, seed=5, settings=("models.context=512", *BRISK))
    assert [each.disturbance for each in rounds] == list(DISTURBANCES)
    assert [each.running for each in rounds] == [8] * len(rounds), "streams ended too soon: make them longer"
    assert any(each.driver == each.victim for each in rounds), "the seed is to be one with which a driver is lost"
    assert [(told.error, told.finished) for each in rounds for told in each.streams] == [(None, True)] * 8 * len(rounds)
    assert [each.wrong for each in rounds] == [0] * len(rounds)
    assert leaks([left for each in rounds for left in each.leftovers]) == []
