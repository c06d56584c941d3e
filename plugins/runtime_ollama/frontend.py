"""The frontend: its paths, its form of error, its line of greeting."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter

from runtime.errors import RuntimeFault
from runtime.spi import Engine, Frontend
from runtime_ollama.routes import ollama_router


class OllamaFrontend(Frontend):
    """Ollama's HTTP API (https://github.com/ollama/ollama/blob/main/docs/api.md), as far as its routes go."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``/api``. The root, which only answers that it runs, has no errors of its own."""
        return ("/api",)

    def router(self, engine: Engine) -> APIRouter:
        """Make the routes."""
        return ollama_router(engine, self.error_body)

    def error_body(self, fault: RuntimeFault) -> dict[str, Any]:
        """``{"error": "..."}``."""
        return {"error": fault.message}

    def greeting(self, url: str, model: str, key: bool) -> str:
        """Ask for the capital of France."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "options": {"temperature": 0},
            "stream": False,
        }
        authorization = ' -H "Authorization: Bearer $RUNTIME_API_KEY"' if key else ""
        payload = json.dumps(body).replace("'", r"'\''")
        return f"curl {url}/api/chat{authorization} -d '{payload}'"
