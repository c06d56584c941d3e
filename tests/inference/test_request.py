"""Settings without a meaning are refused by name; prompts are made to fit the context."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ContextExceeded, InvalidRequest
from runtime.inference.request import check_request, fit_context
from runtime.spi import GenerationRequest, Sampling, Text


def order(sampling: Sampling | None = None, **settings: Any) -> GenerationRequest:
    return GenerationRequest("tiny", Text("x"), sampling or Sampling(), **settings)


HUGE = 10**5000
"""More digits than Python writes."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("top_k", -1),
        ("top_k", HUGE),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("penalty_context", -1),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("seed", -HUGE),
    ],
    ids=lambda value: "huge" if isinstance(value, int) and abs(value) > 2**100 else None,
)
def test_a_setting_out_of_its_bounds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is .* must be between") as refused:
        check_request(order(Sampling(**{name: value})))
    assert refused.value.param == name


@pytest.mark.parametrize("bias", [{1: 101.0}, {1: float("nan")}, {-1: 0.0}, {2**31: 0.0}, {HUGE: 0.0}])
def test_a_bias_without_a_meaning_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        check_request(order(Sampling(logit_bias=bias)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("stop", ("x",) * 65),
        ("stop", ("x" * 1025,)),
        ("logprobs", -1),
        ("logprobs", 101),
    ],
)
def test_a_request_without_a_meaning_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(order(**{name: value}))
    assert refused.value.param == name


def test_settings_at_their_bounds_are_taken() -> None:
    check_request(order(Sampling(temperature=0, top_p=0, seed=2**64 - 1, logit_bias={0: -100.0, 5: 100.0})))
    check_request(order(Sampling(temperature=100, top_k=2**31, seed=-(2**63)), max_tokens=HUGE, logprobs=0))


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 60)), st.integers(1, 40), st.booleans())
def test_prompt_and_completion_together_fit_the_context(
    length: int, max_tokens: int | None, context: int, truncate: bool
) -> None:
    tokens = tuple(range(length))
    try:
        prompt, room = fit_context(tokens, max_tokens, context, truncate=truncate)
    except ContextExceeded:
        assert length >= context
        assert not truncate or context == 1
        return
    assert len(prompt) >= 1
    assert room >= 1
    assert len(prompt) + room <= context
    assert prompt == tokens[-len(prompt) :], "the newest tokens stay"
    assert prompt == tokens or (truncate and length >= context and len(prompt) == context // 2)
    assert room == context - len(prompt) if max_tokens is None else room == min(max_tokens, context - len(prompt))


def test_fewer_tokens_at_most_than_at_least_are_refused() -> None:
    check_request(order(min_tokens=8, max_tokens=8))
    check_request(order(min_tokens=8))
    with pytest.raises(InvalidRequest, match="min_tokens is 9"):
        check_request(order(min_tokens=9, max_tokens=8))
