"""Two real nodes, and a model that lies on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.testing.models import tiny_llama
from runtime.testing.processes import NodeProcess, eventually, node_process, peers_of
from tests.conftest import ONE_THREAD

pytestmark = pytest.mark.slow

SETTINGS = (
    "cluster.listen=127.0.0.1:0",
    "cluster.key=a secret of two",
    "models.context=256",
    "roles.placement=even",
)
ORDER: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "one two three"}],
    "max_tokens": 8,
    "temperature": 0,
}


def answer(node: NodeProcess) -> str:
    response = node.post("/v1/chat/completions", ORDER)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_model_on_one_node_is_served_by_two_and_answered_by_both(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "models" / "tiny", files=2)
    with (
        node_process(tmp_path / "a", "a", *SETTINGS, f"models.path={[str(model.parent)]}", env=ONE_THREAD) as a,
        node_process(tmp_path / "b", "b", *SETTINGS, peers_of(a), env=ONE_THREAD) as b,
    ):
        eventually(lambda: (a.sees().get("b"), b.sees().get("a")) == ("up", "up"), "the nodes see each other")
        said = answer(a)
        assert a.layers("tiny") == {"a": (0, 1), "b": (2, 3)}
        assert answer(b) == said
        (borrowed,) = (tmp_path / "b" / "data" / "borrowed").iterdir()
        assert {"config.json", "tokenizer.json"} <= {file.name for file in borrowed.iterdir()}
