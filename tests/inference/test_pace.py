"""How many prompt tokens come between two decode steps."""

from __future__ import annotations

import pytest

from runtime.inference.pace import FIRST_CHUNK, LEAST_CHUNK, SHARE, Pace


def test_a_turn_of_prompts_takes_its_share_of_the_gap_whatever_tokens_come_to_cost() -> None:
    pace = Pace()
    assert pace.chunk(2048, 1, 8) == FIRST_CHUNK
    for _ in range(5):
        pace.gap(0.1, 0)
    assert pace.chunk(2048, 1, 8) == FIRST_CHUNK
    for cost in (0.001, 0.004):
        for _ in range(40):
            tokens = pace.chunk(2048, 1, 8)
            pace.gap(0.1 + 0.02 + cost * tokens, tokens)
        assert 0.02 + cost * pace.chunk(2048, 1, 8) == pytest.approx(0.1 * SHARE, rel=0.1)
    assert pace.chunk(20, 1, 8) == 20
    assert pace.chunk(2048, 16, 8) == pytest.approx(2 * pace.chunk(2048, 1, 8), abs=1)
    for _ in range(40):
        pace.gap(0.1 + 1.0, LEAST_CHUNK)
    assert pace.chunk(2048, 1, 8) == LEAST_CHUNK


def test_one_slow_gap_does_not_lengthen_the_turns_of_prompts() -> None:
    pace = Pace()
    for seconds in (0.1, 0.1, 5.0, 0.1, 0.1):
        pace.gap(seconds, 0)
    pace.gap(0.2, 100)
    assert pace.chunk(2048, 1, 8) == pytest.approx(100 * SHARE, abs=1)
