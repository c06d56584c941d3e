"""What the built-in frontends accept and refuse is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from runtime_ollama.schema import ChatBody as OllamaChat
from runtime_ollama.schema import GenerateBody, Options
from runtime_openai.schema import ChatBody, CompletionBody

DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
PLAIN = {"model", "messages", "prompt", "system", "raw", "options"}
"""Fields that every client of these APIs knows."""


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, OllamaChat, GenerateBody, Options])
def test_every_field_of_a_request_is_documented(body: type[BaseModel]) -> None:
    missing = {name for name in body.model_fields if f"`{name}`" not in DOCS and f"`{name}." not in DOCS}
    assert missing - PLAIN == set()
