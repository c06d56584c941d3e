"""The benchmark of near ties runs, and tells a tie that rounding decides from a text that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks import near_ties
from benchmarks.ties.compare import WRONG, compare, first_difference, tally
from benchmarks.ties.gap import gap
from benchmarks.ties.texts import Wish, alone, wishes
from runtime.inference.shard import Shard
from runtime.testing.models import tiny_llama
from tests.inference.pipeline import shards

WISHES = wishes([range(3, 10), range(40, 90), range(7, 9), range(100, 133)])
TOKENS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Shard:
    [shard] = shards(tiny, (0, 4))
    return shard


def ranking(whole: Shard, wish: Wish, before: tuple[int, ...]) -> list[tuple[float, int]]:
    """Return log-probability and id of all tokens that may follow, likeliest first."""
    logits = whole.forward(mx.array([[*wish.prompt, *before]]), whole.new_cache())
    assert isinstance(logits, mx.array)
    scores = (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0, -1].tolist()
    return sorted(((score, token) for token, score in enumerate(scores)), reverse=True)


def test_the_benchmark_compares_every_way_and_finds_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert near_ties.main(["--tiny", "--texts", "6", "--tokens", "8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["how"], row["stages"], row["kind"]) for row in rows] == [
        (how, stages, kind)
        for stages, ways in ((1, ("in batches", "interrupted")), (2, ("alone", "in batches", "interrupted")))
        for how in ways
        for kind in ("greedy", "seeded")
    ]
    assert all(row["texts"] == 3 and 0 < row["tokens"] <= 24 for row in rows)
    assert all((row["widest"] > 1) == (row["how"] == "in batches") for row in rows)


def test_a_pipeline_that_computes_something_else_is_called_wrong(tiny: Path, whole: Shard) -> None:
    first, last = shards(tiny, (0, 2, 4))
    down = last.model.model.layers[2].mlp.down_proj
    down.weight = down.weight * 1.5
    rows = list(compare({1: [whole], 2: [first, last]}, WISHES, TOKENS, seed=1))
    assert not any(row.wrong for row in rows if row.stages == 1)
    assert all(row.wrong for row in rows if row.stages == 2 and row.how == "alone")


@pytest.mark.parametrize("index", [0, 1], ids=["greedy", "seeded"])
def test_one_token_in_place_of_another_is_called_wrong(whole: Shard, index: int) -> None:
    wish = WISHES[index]
    [text] = alone([whole], [wish], TOKENS)
    _, unlikely = ranking(whole, wish, tuple(text[:3]))[-1]
    changed = [*text[:3], unlikely, *text[4:]]
    row = next(row for row in tally("changed", whole, 1, [wish], [text], [changed]) if row.texts)
    assert (row.differ, row.wrong, row.tokens) == (1, 1, 4)
    assert row.gaps[0] > WRONG


def test_a_tie_that_rounding_decides_is_not_called_wrong(tiny: Path) -> None:
    [shard] = shards(tiny, (0, 4))
    wish = WISHES[0]
    [text] = alone([shard], [wish], TOKENS)
    twin = next(token for token in range(300, 320) if token not in (*wish.prompt, *text))
    embedding = shard.model.model.embed_tokens
    rows = mx.array(embedding.weight)
    rows[twin] = rows[text[5]] * (1 - 1e-7)
    embedding.weight = rows
    changed = [*text[:5], twin, *text[6:]]
    [row, _] = tally("changed", shard, 1, [wish], [text], [changed])
    assert (row.differ, row.wrong) == (1, 0)
    assert row.gaps[0] < WRONG


def test_the_gap_of_a_greedy_text_is_the_difference_of_two_log_probabilities(whole: Shard) -> None:
    wish = WISHES[0]
    (best, chosen), (second, other), *_ = ranking(whole, wish, (5, 6))
    assert gap(whole, wish, (5, 6), chosen, other) == pytest.approx(best - second, abs=1e-5)
    assert gap(whole, wish, (5, 6), other, chosen) == 0.0


def test_the_first_difference_of_two_texts_is_found() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    with pytest.raises(ValueError, match="shorter"):
        first_difference([1, 2, 3], [1, 2])
