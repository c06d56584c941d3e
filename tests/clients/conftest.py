"""The unmodified clients of the APIs that the node speaks."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import openai
import pytest

from runtime.testing.processes import NodeProcess


@pytest.fixture
def openai_client(node: NodeProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client. It asks once: a retry would hide a failure."""
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def ollama_client(node: NodeProcess) -> Iterator[ollama.Client]:
    """Ollama's client."""
    client = ollama.Client(host=node.url, timeout=120)
    yield client
    client._client.close()
