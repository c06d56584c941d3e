"""Streams over three real nodes, of which one is killed and one is frozen: nobody gets another text, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.soak import soak
from runtime.testing.models import tiny_llama

pytestmark = pytest.mark.slow

# A frozen node is called down after a second and a half instead of seven.
BRISK = ("cluster.longest_silence=1.5", "cluster.acceptable_pause=1.0", "cluster.probe_timeout=0.5")


def test_streams_outlive_a_killed_and_a_frozen_node_word_for_word_and_leave_nothing_behind(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    rounds = soak(tmp_path, model, seconds=0, streams=8, tokens=200, seed=5, settings=("models.context=512", *BRISK))
    assert {each.disturbance for each in rounds} == {"kill", "freeze"}
    assert any(each.driver == each.victim for each in rounds), "the seed is to be one with which a driver is lost"
    assert [(told.error, told.finished) for each in rounds for told in each.streams] == [(None, True)] * 16
    assert [each.wrong for each in rounds] == [0, 0]
    first, last = rounds[0].leftovers, rounds[-1].leftovers
    assert last.actors <= first.actors  # in the first count an actor may be about to end
    assert last.reserved == 0
    assert last.files <= first.files + 4
