from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger

from runtime.actors import ActorRef, DeadLetter, DeadLetters, Message
from runtime.actors.dead_letters import LOGGED, PERIOD

REF = ActorRef("here", "/somebody", 1)


class Word(Message, frozen=True, tag="test.dead.word"):
    text: str = ""


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).strip()), format="{message}", level="INFO")
    yield lines
    logger.remove(sink)


def test_a_dead_letter_is_counted_by_its_reason_and_told_to_subscribers() -> None:
    letters = DeadLetters()
    heard: list[DeadLetter] = []
    end = letters.subscribe(heard.append)
    letters.record(REF, Word("a"), "overflow")
    letters.record(REF, Word("b"), "stopped")
    end()
    end()
    letters.record(REF, Word("c"), "stopped")
    assert heard == [DeadLetter(REF, Word("a"), "overflow"), DeadLetter(REF, Word("b"), "stopped")]
    assert letters.counts == {"overflow": 1, "stopped": 2}


def test_a_subscriber_that_fails_disturbs_nobody(log: list[str]) -> None:
    letters = DeadLetters()
    heard: list[DeadLetter] = []

    def broken(letter: DeadLetter) -> None:
        raise ValueError(letter.reason)

    letters.subscribe(broken)
    letters.subscribe(heard.append)
    letters.record(REF, Word(), "stopped")
    assert len(heard) == 1
    assert any("a subscriber of dead letters failed" in line for line in log)


def test_the_log_has_a_bounded_number_of_lines_in_any_period_and_says_what_it_left_out(log: list[str]) -> None:
    now = 0.0
    letters = DeadLetters(lambda: now)
    for _ in range(1000):
        letters.record(REF, Word(), "overflow")
    assert log == ["dead letter (overflow): Word for here/somebody"] * LOGGED
    now = PERIOD
    letters.record(None, Word(), "late_reply")
    assert log[LOGGED:] == [
        f"{1000 - LOGGED} more dead letters were not logged",
        "dead letter (late_reply): Word for nobody",
    ]
    assert letters.counts.total() == 1001
