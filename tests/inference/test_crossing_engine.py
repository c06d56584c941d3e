"""Nodes on loopback serve models of which more than the hidden state crosses the cuts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.testing.models import write_tokenizer
from runtime.testing.tiny import tiny_config
from runtime_crossing.family import CrossingFamily
from tests.inference.serving import PROMPT, reference, request, serving, tokens
from tests.weights.checkpoints import parameters, random_model, write


@pytest.mark.parametrize("module", ["gemma4_text", "hunyuan"])
async def test_tokens_over_three_nodes_equal_those_of_mlx_lm(module: str, tmp_path: Path) -> None:
    config = tiny_config(module)
    folder = write(tmp_path / module, config, parameters(random_model(config)))
    write_tokenizer(folder, vocab=config["vocab_size"])
    expected = [reference(folder, prompt, 24) for prompt in (PROMPT, PROMPT[::-1])]
    async with serving("a", "b", "c", folders={module: folder}, family=CrossingFamily()) as nodes:
        found = await asyncio.gather(
            tokens(nodes[0], request(module, max_tokens=24)),
            tokens(nodes[1], request(module, PROMPT[::-1], max_tokens=24)),
        )
        assert [len(node.stages()) for node in nodes] == [1, 1, 1]
    assert list(found) == expected
