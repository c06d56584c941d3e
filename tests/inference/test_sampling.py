"""Sampling depends on the seed, the position and the logits, and on nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from runtime.inference.protocol import OpenSequence
from runtime.inference.sampling import TokenSampler, collect_scores, sample_rows
from runtime.spi import Sampling

VOCABULARY = 300
PROMPT = (5, 6, 7, 8)


def logits(seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal((1, VOCABULARY)).astype(np.float32) * 3)


def sampler(
    sampling: Sampling,
    seed: int = 1,
    logprobs: int | None = None,
    prompt: tuple[int, ...] = PROMPT,
    eos: tuple[int, ...] = (),
    min_tokens: int = 0,
) -> TokenSampler:
    opened = OpenSequence(1, prompt, len(prompt), sampling, seed, logprobs, eos, min_tokens)
    return TokenSampler(opened, VOCABULARY)


def drawn(sampling: Sampling, count: int = 24, seed: int = 1) -> list[int]:
    one = sampler(sampling, seed)
    return [int(one(logits(position), position)[0].item()) for position in range(count)]


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("top_p", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_two_sequences_that_take_turns_do_not_disturb_each_other(top_p: float, top_k: int, min_p: float) -> None:
    sampling = Sampling(top_p=top_p, top_k=top_k, min_p=min_p)
    first, second = sampler(sampling, 1), sampler(sampling, 2)
    taken: tuple[list[int], list[int]] = ([], [])
    for position in range(24):
        for one, into in zip((first, second), taken, strict=True):
            mx.random.uniform()
            into.append(int(one(logits(position), position)[0].item()))
    assert taken == (drawn(sampling, seed=1), drawn(sampling, seed=2))


def test_a_replay_from_any_position_goes_on_with_the_same_tokens() -> None:
    whole = drawn(Sampling())
    later = sampler(Sampling())
    assert [int(later(logits(position), position)[0].item()) for position in range(9, 24)] == whole[9:]


def test_tokens_that_are_drawn_ahead_of_their_evaluation_are_the_same() -> None:
    one = sampler(Sampling())
    lazy = [one(logits(position), position)[0] for position in range(24)]
    mx.random.seed(99)
    assert [int(token.item()) for token in reversed(lazy)] == drawn(Sampling())[::-1]


def test_the_requests_seed_counts_before_the_drawn_one() -> None:
    assert drawn(Sampling(seed=5), seed=1) == drawn(Sampling(seed=5), seed=2)
    assert drawn(Sampling(), seed=1) != drawn(Sampling(), seed=2)
    assert drawn(Sampling(seed=0), seed=1) == drawn(Sampling(), seed=0)
    assert len(drawn(Sampling(seed=-(2**63)))) == len(drawn(Sampling(seed=2**64 - 1)))


def test_another_thread_draws_the_same_whatever_it_drew_before() -> None:
    found: list[list[int]] = []

    def work() -> None:
        mx.eval(mx.random.uniform(shape=(7,)))
        found.append(drawn(Sampling(top_p=0.9, top_k=20)))
        done.set()
        # mlx 0.32 takes the GIL when a thread that used it ends: see runtime.inference.compute.
        threading.Event().wait()

    done = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    assert done.wait(20)
    assert found == [drawn(Sampling(top_p=0.9, top_k=20))]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    few = mx.array([[0.0, 1.0, 2.0, -1.0, 0.5, -20.0]])
    likely = np.exp(np.asarray(few)[0].astype(np.float64) / temperature)
    likely /= likely.sum()
    one = sampler(Sampling(temperature=temperature))
    draws = 6000
    counts = np.bincount(
        [int(token.item()) for token in (one(few, position)[0] for position in range(draws))], minlength=6
    )
    # Pearson's chi-squared over the tokens that are drawn at all: above 20.5 for 4 degrees once in 2,500 seeds.
    expected = likely[:5] * draws
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 20.5
    assert counts[5] == 0


@pytest.mark.parametrize(
    "filters", [{"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.05}, {"top_p": 0.95, "top_k": 12, "min_p": 0.02}], ids=str
)
def test_no_token_is_drawn_that_mlx_lms_sampler_would_not_draw(filters: dict[str, Any]) -> None:
    scores = logits() - mx.logsumexp(logits(), axis=-1, keepdims=True)
    sample = make_sampler(temp=3.0, **filters)
    mx.random.seed(0)
    theirs = set(sample(mx.repeat(scores, 4000, axis=0)).tolist())
    one = sampler(Sampling(temperature=3.0, **filters))
    ours = {int(one(logits(), position)[0].item()) for position in range(1000)}
    assert len(ours) > 3
    assert ours <= theirs


def test_rounding_decides_only_between_tokens_that_are_as_good_as_equal() -> None:
    """Another size of a batch changes scores by about 1e-6; here it is a thousand times as much, to see it at all."""
    noise = np.random.default_rng(5)
    changed = 0
    for position in range(2000):
        scores = logits(position)
        rounded = scores + mx.array(noise.uniform(-1e-3, 1e-3, scores.shape).astype(np.float32))
        one = sampler(Sampling())
        changed += int(one(scores, position)[0].item()) != int(one(rounded, position)[0].item())
    # One in 2,000; a number looked up in the cumulative distribution gives another token for 18.
    assert changed <= 2


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1e-30), Sampling(top_p=0)], ids=str)
def test_no_heat_and_no_nucleus_take_the_likeliest_token(sampling: Sampling) -> None:
    greedy: Callable[[mx.array], mx.array] = make_sampler(temp=0.0)
    assert drawn(sampling) == [int(greedy(logits(position)).item()) for position in range(24)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_greedy_takes_what_mlx_lm_takes_of_its_log_probabilities_in_every_dtype(dtype: mx.Dtype) -> None:
    greedy: Callable[[mx.array], mx.array] = make_sampler(temp=0.0)
    rows = mx.concatenate([logits(seed) / 30 for seed in range(200)]).astype(dtype)
    theirs = greedy(rows - mx.logsumexp(rows, axis=-1, keepdims=True)).tolist()
    samplers = [sampler(Sampling(temperature=0)) for _ in theirs]
    assert sample_rows(samplers, rows, range(200))[0].tolist() == theirs
    assert [int(one(rows[index : index + 1], 0)[0].item()) for index, one in enumerate(samplers)] == theirs
    # In 16 bits the likeliest is often equal to others once the logarithm is taken off, and then the first counts.
    assert (mx.argmax(rows, axis=-1).tolist() == theirs) == (dtype == mx.float32)


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**31])
def test_a_top_k_of_the_whole_vocabulary_or_more_is_off(top_k: int) -> None:
    assert drawn(Sampling(top_k=top_k)) == drawn(Sampling())


def test_a_top_k_of_one_takes_the_likeliest_token() -> None:
    assert drawn(Sampling(top_k=1)) == drawn(Sampling(temperature=0))


def test_a_bias_of_a_token_forces_or_forbids_it_and_one_that_no_model_has_does_nothing() -> None:
    assert set(drawn(Sampling(logit_bias={9: 100.0}))) == {9}
    likeliest = drawn(Sampling(temperature=0), 1)[0]
    assert drawn(Sampling(temperature=0, logit_bias={likeliest: -100.0}), 1)[0] != likeliest
    assert drawn(Sampling(logit_bias={VOCABULARY: 100.0, 10**9: 100.0})) == drawn(Sampling())


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.7, "logit_bias": {4: 2.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [1, 3, 64])
def test_penalties_are_those_of_mlx_lm_over_the_last_tokens(penalties: dict[str, Any], window: int) -> None:
    processors = make_logits_processors(
        **penalties,
        repetition_context_size=window,
        presence_context_size=window,
        frequency_context_size=window,
    )
    history = list(PROMPT)
    expected = []
    for _ in range(30):
        scores = logits()
        for process in processors:
            scores = process(mx.array(history), scores)
        history.append(int(mx.argmax(scores, axis=-1).item()))
        expected.append(history[-1])
    one = sampler(Sampling(temperature=0, penalty_context=window, **penalties))
    assert [int(one(logits(), position)[0].item()) for position in range(30)] == expected


@pytest.mark.parametrize("penalties", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.9}], ids=str)
def test_presence_and_frequency_penalties_can_count_sampled_tokens_only(penalties: dict[str, Any]) -> None:
    prompt = tuple(np.argsort(-np.asarray(logits())[0])[:8].tolist())
    sampling = Sampling(temperature=0, penalty_context=1000, repetition_penalty=1.3, **penalties)
    repetition = make_logits_processors(repetition_penalty=1.3, repetition_context_size=1000)
    additive = make_logits_processors(**penalties, presence_context_size=1000, frequency_context_size=1000)
    expected: list[int] = []
    for _ in range(30):
        scores = repetition[0](mx.array([*prompt, *expected]), logits())
        expected.append(int(mx.argmax(additive[0](mx.array(expected, dtype=mx.int32), scores)).item()))
    one = sampler(msgspec.structs.replace(sampling, penalize_prompt=False), prompt=prompt)
    assert [int(one(logits(), position)[0].item()) for position in range(30)] == expected
    counting = sampler(sampling, prompt=prompt)
    assert [int(counting(logits(), position)[0].item()) for position in range(30)] != expected


def test_a_window_of_no_tokens_turns_penalties_off() -> None:
    sampling = Sampling(temperature=0, penalty_context=0, repetition_penalty=9.0, presence_penalty=2.0)
    assert drawn(sampling) == drawn(Sampling(temperature=0))


def test_a_bias_alone_keeps_no_history_that_would_grow() -> None:
    one = sampler(Sampling(temperature=0, logit_bias={4: 1.0}))
    before = mx.get_active_memory()
    for position in range(3000):
        mx.eval(one(logits(), position)[0])
    assert mx.get_active_memory() - before < 20_000


@given(st.integers(0, 1000), st.integers(0, 8), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_log_probabilities_are_the_log_softmax_of_the_logits(seed: int, count: int, temperature: float) -> None:
    values = np.asarray(logits(seed))[0].astype(np.float64)
    expected = values - np.log(np.exp(values - values.max()).sum()) - values.max()
    token, scores = sampler(Sampling(temperature=temperature), logprobs=count)(logits(seed), 3)
    logprob, pairs = collect_scores(scores)
    assert logprob == pytest.approx(expected[int(token.item())], abs=1e-5)
    assert [identity for identity, _ in pairs] == list(np.argsort(-expected)[:count])
    assert [value for _, value in pairs] == pytest.approx(sorted(expected)[::-1][:count], abs=1e-5)


def test_log_probabilities_are_only_made_when_they_are_wanted() -> None:
    assert sampler(Sampling())(logits(), 0)[1] is None
    assert collect_scores(None) == (None, ())
    assert len(collect_scores(sampler(Sampling(), logprobs=10**6)(logits(), 0)[1])[1]) == VOCABULARY


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_end_before_the_least_number_of_tokens(temperature: float) -> None:
    ends = tuple(np.argsort(-np.asarray(logits())[0])[:290].tolist())
    one = sampler(Sampling(temperature=temperature), eos=(*ends, VOCABULARY + 3), min_tokens=5)
    drawn = [int(one(logits(), len(PROMPT) + index)[0].item()) for index in range(12)]
    assert not set(drawn[:5]) & set(ends)
    assert set(drawn[5:]) & set(ends)


MIXED = (
    Sampling(temperature=0),
    Sampling(temperature=0, repetition_penalty=1.4),
    Sampling(top_p=0.8),
    Sampling(seed=9, top_k=7),
    Sampling(temperature=0, logit_bias={3: 50.0}),
)


@pytest.mark.parametrize("settings_of_rows", [MIXED, MIXED[:1] * 5], ids=["mixed", "greedy"])
@pytest.mark.parametrize("logprobs", [None, 3])
def test_rows_are_sampled_each_as_if_it_were_alone(
    settings_of_rows: tuple[Sampling, ...], logprobs: int | None
) -> None:
    rows = [sampler(each, seed, logprobs) for seed, each in enumerate(settings_of_rows)]
    alone = [sampler(each, seed, logprobs) for seed, each in enumerate(settings_of_rows)]
    for step in range(6):
        both = mx.concatenate([logits(10 * step + row) for row in range(5)])
        positions = [step + row for row in range(5)]
        tokens, scores = sample_rows(rows, both, positions)
        expected = [one(both[row : row + 1], positions[row]) for row, one in enumerate(alone)]
        assert tokens.tolist() == [int(token.item()) for token, _ in expected]
        assert [collect_scores(each) for each in scores] == [collect_scores(each) for _, each in expected]
