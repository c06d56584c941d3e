"""How many prompt tokens come between two decode steps."""

from __future__ import annotations

import pytest

from runtime.inference.pace import FIRST_CHUNK, LEAST_CHUNK, LEAST_SHARE, SHARE, Pace


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


def take_in(pace: Pace, calm: float, gaps: int = 40) -> float:
    """Let a prompt be taken in where decoding takes ``calm`` seconds and a token 1 ms; return the last gap."""
    gap = calm
    for _ in range(5):
        pace.gap(calm, 0)
    for _ in range(gaps):
        tokens = pace.chunk(2048, 1, 8)
        gap = calm + 0.001 * tokens
        pace.gap(gap, tokens)
    return gap


def test_the_gap_stays_what_it_was_when_the_prompt_began_though_decoding_gets_slower() -> None:
    pace = Pace()
    take_in(pace, 0.1)
    pace.begins()
    assert take_in(pace, 0.12) == pytest.approx(0.1 * (1 + SHARE), rel=0.02)
    assert take_in(pace, 0.14) == pytest.approx(0.1 * (1 + SHARE), rel=0.02)
    assert take_in(pace, 0.3) == pytest.approx(0.3 * (1 + LEAST_SHARE), rel=0.02)
    pace.begins()
    assert take_in(pace, 0.3) == pytest.approx(0.3 * (1 + SHARE), rel=0.02)


def test_prompts_take_no_more_than_their_share_once_decoding_is_faster_than_it_was() -> None:
    pace = Pace()
    take_in(pace, 0.3)
    pace.begins()
    assert take_in(pace, 0.1) == pytest.approx(0.1 * (1 + SHARE), rel=0.02)
