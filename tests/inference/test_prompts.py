"""Prompts become tokens, and tokens text: of any text, many at once, with the tokenizer of the loaded model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from anyio import to_thread

from runtime.errors import InvalidRequest, ModelError
from runtime.inference.driver import DriverLimits
from runtime.inference.engine import TOKENIZERS
from runtime.spi import (
    Chat,
    ChatMessage,
    Finished,
    GenerationRequest,
    LayerSpan,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    StagePlan,
    Text,
    Tokens,
)
from runtime.testing.models import tiny_llama
from tests.inference.serving import GREEDY, events, request, serving, tokens
from tests.wire.loopback import DEADLINE, eventually


async def test_a_tokenizer_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    good = (folder / "tokenizer.json").read_bytes()
    async with serving("a", folders={"tiny": folder}) as (a,):
        (folder / "tokenizer.json").write_bytes(b"{")
        with pytest.raises(ModelError, match="tokenizer"):
            await events(a, request())
        (folder / "tokenizer.json").write_bytes(good)
        with pytest.raises(ModelError, match="the files of tiny have changed since it was loaded; unload it"):
            await events(a, request())
        await a.engine.unload("tiny")
        assert len(await tokens(a, request())) == 16


async def test_a_node_with_other_files_does_not_turn_anothers_tokens_into_text(tmp_path: Path, tiny: Path) -> None:
    class Alone(PlacementPolicy):
        def plan(self, request: PlacementRequest) -> Plan:
            return Plan((StagePlan("a", LayerSpan(0, request.layers, request.layers), 1 << 20),), "only a")

    async with serving("a", "b", folders={"tiny": tiny}, policy=Alone()) as (a, b):
        b.source.folders = {"tiny": tiny_llama(tmp_path / "changed", seed=3, vocab=400)}
        assert len(await tokens(a, request())) == 16
        with pytest.raises(ModelError, match=r"node b has other files for tiny than a \(digest"):
            await events(b, request())
        assert b.stages() == []


async def test_prompts_wait_for_no_other_work_in_threads(tiny: Path) -> None:
    gate = threading.Event()
    async with serving("a", folders={"tiny": tiny}) as (a,):
        await tokens(a, request())
        limiter = to_thread.current_default_thread_limiter()
        busy = [asyncio.create_task(to_thread.run_sync(gate.wait, 30)) for _ in range(int(limiter.total_tokens))]
        try:
            await eventually(lambda: limiter.available_tokens == 0)
            async with asyncio.timeout(DEADLINE):
                assert len(await tokens(a, request())) == 16
        finally:
            gate.set()
        await asyncio.gather(*busy)


async def test_only_the_last_tokenizers_are_kept(tmp_path: Path) -> None:
    folders = {f"tiny{seed}": tiny_llama(tmp_path / str(seed), seed=seed, layers=1) for seed in range(TOKENIZERS + 2)}
    async with serving("a", folders=folders) as (a,):
        for name in folders:
            assert len(await tokens(a, request(name, max_tokens=2))) == 2
        assert len(a.engine._tokenizers) == TOKENIZERS
        assert len(await tokens(a, request("tiny0", max_tokens=2))) == 2


@pytest.mark.parametrize("text", ["\0", "\U0010ffff\u202e", "<|im_end|>" * 3, " " * 500])
async def test_any_text_is_a_prompt(text: str, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}, context=2048) as (a,):
        heard = await events(a, GenerationRequest("tiny", Text(text), sampling=GREEDY, max_tokens=2))
        assert isinstance(heard[-1], Finished)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (Text(""), "prompt"),
        (Text("half a \ud800 character"), "prompt"),
        (Tokens(()), "prompt"),
        (Tokens((5, 320)), "prompt"),
        (Tokens((-1,)), "prompt"),
        (Chat(()), "messages"),
        (Chat((ChatMessage("user", "half a \ud800 character"),)), "messages"),
    ],
    ids=str,
)
async def test_what_is_no_prompt_is_refused_by_name(prompt: Text | Tokens | Chat, param: str, tiny: Path) -> None:
    async with serving("a", folders={"tiny": tiny}) as (a,):
        with pytest.raises(InvalidRequest) as refused:
            await events(a, GenerationRequest("tiny", prompt, sampling=GREEDY, max_tokens=2))
        assert refused.value.param == param
        assert a.sequences() == 0


async def test_many_prompts_are_tokenized_at_once(tiny: Path) -> None:
    async with serving(
        "a", folders={"tiny": tiny}, limits=DriverLimits(sequences=8, waiting=32, prefix_cache=False, keep_alive=-1)
    ) as (a,):
        prompts = [Text(f"the quick brown fox number {number} " * 5) for number in range(16)]
        orders = [GenerationRequest("tiny", prompt, sampling=GREEDY, max_tokens=2) for prompt in prompts]
        heard = await asyncio.gather(*(events(a, order) for order in orders))
        assert all(isinstance(each[-1], Finished) for each in heard)
