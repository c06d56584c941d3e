"""OpenAI's own client against a real node with the embedded model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.conftest import CAPITAL, MODEL, STORY, Reference

pytestmark = pytest.mark.slow

ALPHABET = "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d"

Ask = Callable[..., ChatCompletion]


@pytest.fixture
def ask(openai_client: openai.OpenAI) -> Ask:
    """Return a function that asks for a chat completion, greedily unless told otherwise."""

    def ask(prompt: str, **options: object) -> ChatCompletion:
        fields = {"temperature": 0, "max_tokens": 16} | options
        completion = openai_client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": prompt}],
            **fields,  # type: ignore[call-overload]  # the overloads cannot see into a dict
        )
        assert isinstance(completion, ChatCompletion)
        return completion

    return ask


def text(completion: ChatCompletion) -> str:
    content = completion.choices[0].message.content
    assert content is not None
    return content


def test_a_chat_answers_with_paris_and_counts_its_tokens(ask: Ask, chats: dict[str, Reference]) -> None:
    completion = ask(CAPITAL, max_tokens=32)
    expected = chats[CAPITAL]
    assert "Paris" in text(completion)
    assert text(completion) == expected.text
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(expected.prompt)
    assert completion.usage.completion_tokens == len(expected.tokens)
    assert completion.usage.total_tokens == len(expected.prompt) + len(expected.tokens)


def test_a_completion_continues_with_paris(openai_client: openai.OpenAI) -> None:
    completion = openai_client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=6
    )
    assert "Paris" in completion.choices[0].text
    assert completion.choices[0].finish_reason == "length"


def test_token_ids_are_a_prompt_as_good_as_their_text(
    openai_client: openai.OpenAI, chats: dict[str, Reference]
) -> None:
    capital = chats[CAPITAL]
    completion = openai_client.completions.create(model=MODEL, prompt=capital.prompt, temperature=0, max_tokens=32)
    assert completion.choices[0].text == capital.text


def test_streamed_pieces_join_to_the_whole_text(openai_client: openai.OpenAI, ask: Ask) -> None:
    whole = ask(STORY, max_tokens=8)
    pieces, reasons, usages = [], [], []
    with openai_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": STORY}],
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
            usages += [chunk.usage] if chunk.usage else []
    assert "".join(pieces) == text(whole)
    assert len([piece for piece in pieces if piece]) > 5, "it came in pieces"
    assert reasons == ["length"]
    assert usages == [whole.usage]


def test_the_token_limit_ends_an_answer(ask: Ask) -> None:
    completion = ask(STORY, max_tokens=3)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


def test_a_stop_text_ends_an_answer_before_itself(ask: Ask) -> None:
    whole = text(ask(CAPITAL))
    assert " of France" in whole
    cut = ask(CAPITAL, stop=["nowhere", " of France"])
    assert text(cut) == whole.partition(" of France")[0]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_decides_the_text(ask: Ask) -> None:
    first, same, other = (text(ask(STORY, temperature=1, seed=seed, max_tokens=5)) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_choices_differ_and_a_seed_decides_them_all(ask: Ask) -> None:
    first, same = (ask(STORY, temperature=1, seed=5, n=3, max_tokens=4).choices for _ in range(2))
    assert len({choice.message.content for choice in first}) == 3
    assert same == first


def test_logprobs_are_those_of_mlx_lm(ask: Ask, chats: dict[str, Reference]) -> None:
    story = chats[STORY]
    completion = ask(STORY, logprobs=True, top_logprobs=5)
    assert completion.choices[0].logprobs is not None
    content = completion.choices[0].logprobs.content
    assert content is not None
    assert [scored.token for scored in content] == story.texts[:16]
    assert [scored.logprob for scored in content] == pytest.approx(story.logprobs[:16], abs=1e-3)
    for scored in content:
        top = scored.top_logprobs
        assert (top[0].token, top[0].logprob) == (scored.token, scored.logprob), "greedy takes the likeliest"
        assert all(high.logprob >= low.logprob for high, low in itertools.pairwise(top))
        assert len({bytes(each.bytes or ()) for each in top}) == 5
        assert sum(math.exp(each.logprob) for each in top) <= 1 + 1e-4


def test_a_bias_bans_a_token_or_forces_it(ask: Ask, chats: dict[str, Reference]) -> None:
    capital = chats[CAPITAL]
    first, last = capital.tokens[0], capital.tokens[-2]
    banned = text(ask(CAPITAL, max_tokens=3, logit_bias={str(first): -100}))
    assert not banned.startswith(capital.texts[0])
    forced = text(ask(CAPITAL, max_tokens=3, logit_bias={str(last): 100}))
    assert forced == 3 * capital.texts[-2]


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 1.5}}]
)
def test_a_penalty_makes_a_repetitive_text_go_on_otherwise(
    openai_client: openai.OpenAI, penalty: dict[str, object]
) -> None:
    def complete(**options: object) -> str:
        fields = {"temperature": 0, "max_tokens": 4} | options
        completion = openai_client.completions.create(
            model=MODEL,
            prompt="ha ha ha ha ha ha ha ha ha ha ha ha",
            **fields,  # type: ignore[call-overload]  # the overloads cannot see into a dict
        )
        assert isinstance(completion, Completion)
        return completion.choices[0].text

    assert complete() == 4 * " ha"
    assert complete(**penalty).count(" ha") < 4


def test_a_prompt_over_the_context_is_refused_with_both_numbers(ask: Ask) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(80 * ALPHABET)  # and the tokens of the chat template
    assert caught.value.code == "context_length_exceeded"
    assert "the prompt has 2351 tokens" in str(caught.value)
    assert "a context of 2048" in str(caught.value)
    assert "Paris" in text(ask(CAPITAL)), "it goes on serving"


def test_an_unknown_model_is_refused_with_the_nearest_name(openai_client: openai.OpenAI) -> None:
    for call in (
        lambda: openai_client.models.retrieve("smollm2:135"),
        lambda: openai_client.completions.create(model="smollm2:135", prompt="hello"),
        lambda: openai_client.chat.completions.create(model="smollm2:135", messages=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
        assert "did you mean smollm2:135m?" in str(caught.value)


def test_the_embedded_model_is_listed(openai_client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in openai_client.models.list()]
    assert openai_client.models.retrieve(MODEL).owned_by == "gguf"


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "hot"), ("temperature", 3), ("max_tokens", 0), ("temprature", 1), ("n", 99), ("tools", [{}])],
)
def test_a_bad_field_is_named(openai_client: openai.OpenAI, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], extra_body={field: value}
        )
    assert field in str(caught.value.body)
