"""Clients that all hang up at once make room at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.processes import pair
from benchmarks.chaos.storms import storm
from runtime.testing.models import tiny_llama
from runtime.testing.processes import eventually

pytestmark = pytest.mark.slow


def test_the_slots_of_clients_that_hang_up_are_free_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    body: dict[str, object] = {
        "model": model,
        "prompt": "Once",
        "max_tokens": 16_000,
        "logit_bias": {"0": -100, "2": -100},
    }
    with pair(tmp_path / "nodes", "models.context=16384", "models.sequences=16") as (a, b):
        a.load(model)
        # The best of a few: another program may have the cores for one of them.
        assert min(storm(a, body, 16) for _ in range(4)) < 0.1
        eventually(lambda: b.active() == 0, "the other node has heard")
        a.unload(model)
        assert a.get("status")["memory_reserved"] == 0
