"""The frontend: its paths, its form of error, its line of greeting."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter

from runtime.errors import RuntimeFault
from runtime.spi import Engine, Frontend
from runtime_openai.routes import openai_router

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's words for an error's kind, by status; the rest are requests at fault, or the server."""


class OpenAIFrontend(Frontend):
    """OpenAI's HTTP API (https://platform.openai.com/docs/api-reference), as far as its routes go."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``/v1``."""
        return ("/v1",)

    def router(self, engine: Engine) -> APIRouter:
        """Make the routes."""
        return openai_router(engine, self.error_body)

    def error_body(self, fault: RuntimeFault) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        status = fault.http_status
        kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}}

    def greeting(self, url: str, model: str, key: bool) -> str:
        """Ask for the capital of France."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
        }
        authorization = ' -H "Authorization: Bearer $RUNTIME_API_KEY"' if key else ""
        payload = json.dumps(body).replace("'", r"'\''")
        return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{authorization} -d '{payload}'"
