"""A mixture of experts with real text: two real nodes serve a Mixtral made of the embedded model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.spi import read_checkpoint
from runtime.testing.processes import NodeProcess
from runtime.testing.upcycled import upcycled_mixtral
from tests.conftest import MODEL

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def upcycled(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = upcycled_mixtral(tmp_path_factory.mktemp("models") / "upcycled", converted)
    yield folder
    shutil.rmtree(folder)  # most of a gigabyte, which pytest would keep


def answer(node: NodeProcess, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 12}
    response = node.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_mixtral_whose_experts_are_copies_says_what_the_dense_model_says(
    two_nodes: tuple[NodeProcess, NodeProcess], upcycled: Path
) -> None:
    checkpoint = read_checkpoint(upcycled)
    assert checkpoint.model_type == "mixtral"
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) == 4
    assert "model.layers.29.block_sparse_moe.experts.1.w1.weight" in checkpoint.tensors
    expected = answer(two_nodes[0], MODEL)
    assert "Paris" in expected
    assert answer(two_nodes[0], str(upcycled)) == expected
    assert len(two_nodes[0].layers(str(upcycled))) == 2
    two_nodes[0].unload(str(upcycled))
