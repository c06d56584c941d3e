"""What the HTTP server needs to know, already validated by the configuration."""

from __future__ import annotations

import msgspec

DEFAULT_PORT = 11434
"""Ollama's port, so that its clients find the node without being told."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and whom it answers."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 takes any free port; the listener says which."""
    api_key: str | None = None
    """Clients send it as ``Authorization: Bearer <key>``. Required for a host that is not loopback."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides loopback and ``host``, by which clients may call the node."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages, besides loopback ones, that may call the node: ``https://chat.example.org``."""
    max_body_bytes: int = 32 * 1024 * 1024
    shutdown_seconds: int = 10
    """How long requests in progress may go on once the server stops; then they are cancelled."""
