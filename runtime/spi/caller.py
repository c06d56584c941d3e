"""Who a request comes from, for whatever serves it."""

from __future__ import annotations

from contextvars import ContextVar

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Set by the HTTP server for each request with an API key: the same for all of that key, and unlike any other's. It
says nothing of the key. Empty where none is asked for."""
