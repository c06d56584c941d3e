"""One node, or two on loopback, serve tiny models: the text is that of mlx-lm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.errors import ContextExceeded
from runtime.inference.driver import DriverLimits
from runtime.spi import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelLoaded,
    ModelUnloaded,
    RequestFinished,
    Sampling,
    Telemetry,
    TelemetryEvent,
    Tokens,
)
from runtime.spi.caller import CALLER
from runtime.testing.models import tiny_llama
from tests.inference.serving import GREEDY, LONG, PROMPT, events, reference, request, serving, tokens
from tests.wire.loopback import eventually


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")], ids=len)
@pytest.mark.parametrize("kind", ["tiny", "other"])
async def test_tokens_equal_those_of_mlx_lm(names: tuple[str, ...], kind: str, tiny: Path, other: Path) -> None:
    folder = {"tiny": tiny, "other": other}[kind]
    expected = reference(folder, PROMPT, 48)
    async with serving(*names, folders={kind: folder}) as nodes:
        for node in nodes:
            assert await tokens(node, request(kind, max_tokens=48)) == expected
        assert sum(len(node.stages()) for node in nodes) == len(names)
        await eventually(lambda: not any(node.sequences() for node in nodes))


async def test_several_at_once_do_not_disturb_each_other(tiny: Path) -> None:
    prompts = [tuple(range(start, start + length)) for start, length in ((3, 1), (9, 2), (30, 16), (7, 33), (50, 90))]
    expected = [reference(tiny, prompt, 20) for prompt in prompts]
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        work = [
            tokens(node, request(prompt=prompt, max_tokens=20))
            for prompt, node in zip(prompts, (a, b, a, b, a), strict=True)
        ]
        assert await asyncio.gather(*work) == expected


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_one_token_can_be_asked_of_a_prompt_of_one_token(names: tuple[str, ...], tiny: Path) -> None:
    async with serving(*names, folders={"tiny": tiny}) as nodes:
        heard = await events(nodes[0], request(prompt=(9,), max_tokens=1))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert (finished.reason, finished.usage.completion_tokens) == (FinishReason.LENGTH, 1)
        assert [t.token.id for e in heard if isinstance(e, Delta) for t in e.tokens] == reference(tiny, (9,), 1)


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_the_context_can_be_filled_to_its_last_token(names: tuple[str, ...], tiny: Path) -> None:
    async with serving(*names, folders={"tiny": tiny}, context=64) as nodes:
        assert await tokens(nodes[0], request(max_tokens=None)) == reference(tiny, PROMPT, 64 - len(PROMPT))
        with pytest.raises(ContextExceeded, match="64"):
            await events(nodes[0], request(prompt=tuple(range(3, 67))))
        assert len(await tokens(nodes[0], request(prompt=tuple(range(3, 67)), max_tokens=None, truncate=True))) == 32


async def test_the_end_of_text_ends_it_and_is_not_in_the_text(tiny: Path) -> None:
    prompt = next(p for start in range(3, 300) if 2 in reference(tiny, p := tuple(range(start, start + 4)), 60))
    async with serving("a", folders={"tiny": tiny}) as (a,):
        heard = await events(a, request(prompt=prompt, max_tokens=60, ignore_eos=False, logprobs=None))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert finished.reason is FinishReason.STOP
        assert finished.usage.completion_tokens == reference(tiny, prompt, 60).index(2) + 1
        assert "<|im_end|>" not in "".join(event.text for event in heard if isinstance(event, Delta))
        await eventually(lambda: a.sequences() == 0)


async def test_a_stop_text_ends_it_everywhere(tiny: Path) -> None:
    async with serving("a", "b", folders={"tiny": tiny}) as (a, b):
        whole = "".join(e.text for e in await events(b, request(max_tokens=40)) if isinstance(e, Delta))
        stop = whole[20:23]
        heard = await events(b, request(max_tokens=LONG, stop=(stop,)))
        finished = heard[-1]
        assert isinstance(finished, Finished)
        assert (finished.reason, finished.stop) == (FinishReason.STOP, stop)
        assert "".join(e.text for e in heard if isinstance(e, Delta)) == whole[: whole.index(stop)]
        await eventually(lambda: a.sequences() + b.sequences() == 0)


async def test_log_probabilities_of_alternatives_come_with_each_token(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        for event in await events(a, request(logprobs=3)):
            if isinstance(event, Delta):
                for scored in event.tokens:
                    assert len(scored.top) == 3
                    assert scored.top[0] == (scored.token, scored.logprob)


@pytest.mark.parametrize("sampling", [Sampling(seed=5), Sampling(seed=5, top_p=0.9, top_k=40)], ids=str)
async def test_a_seed_gives_the_same_tokens_on_any_number_of_nodes_and_in_any_company(
    sampling: Sampling, tiny: Path
) -> None:
    found = []
    for names in (("a",), ("a", "b"), ("a", "b", "c")):
        async with serving(*names, folders={"tiny": tiny}) as nodes:
            company = [tokens(node, request(sampling=Sampling(), max_tokens=40)) for node in nodes]
            seeded, *others = await asyncio.gather(tokens(nodes[-1], request(sampling=sampling)), *company)
            found.append(seeded)
            assert seeded not in [other[: len(seeded)] for other in others]
    assert found[0] == found[1] == found[2]


class BrokenSink(Telemetry):
    """Fails at every event."""

    def emit(self, event: TelemetryEvent) -> None:
        raise KeyError(type(event).__name__)


async def test_telemetry_that_breaks_harms_neither_requests_nor_stages_nor_other_telemetry(tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        a.sinks = (BrokenSink(), a.telemetry)
        a.engine._telemetry = a.sinks
        assert len(await tokens(a, request())) == 16
        await a.engine.unload("tiny")
        await eventually(lambda: not a.stages())
        assert [type(event) for event in a.telemetry.events] == [ModelLoaded, RequestFinished, ModelUnloaded]


async def test_a_model_with_more_rows_than_the_tokenizer_has_tokens_generates(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", vocab=4000)
    expected = reference(folder, PROMPT, 24)
    assert max(expected) > 1000
    async with serving("a", folders={"tiny": folder}) as (a,):
        assert await tokens(a, request(max_tokens=24, logprobs=2)) == expected


async def test_the_second_turn_of_a_chat_is_not_computed_twice_and_usage_says_so(tiny: Path) -> None:
    limits = DriverLimits(sequences=4, waiting=4, prefix_cache=True, keep_alive=-1)
    async with serving("a", "b", folders={"tiny": tiny}, limits=limits) as (a, _):

        def ask(tokens: tuple[int, ...]) -> GenerationRequest:
            return GenerationRequest("tiny", Tokens(tokens), sampling=GREEDY, max_tokens=8, ignore_eos=True)

        async def cached(tokens: tuple[int, ...], caller: str = "") -> int:
            reset = CALLER.set(caller)
            finished = (await events(a, ask(tokens)))[-1]
            CALLER.reset(reset)
            assert isinstance(finished, Finished)
            return finished.usage.cached_tokens

        turn = tuple(range(5, 105))
        assert await cached(turn) == 0
        assert await cached((*turn, 5, 6)) == len(turn)
        assert await cached((*turn, 5, 6), "another key") == 0
        assert await cached(turn[:20]) == 0
