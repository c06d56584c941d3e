"""Options of the verbs that talk to a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runtime.cli.client import NodeClient

DEFAULT_URL = "http://127.0.0.1:11434"

Url = Annotated[str, typer.Option("--url", envvar="RUNTIME_URL", metavar="URL", help="The node to talk to.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="RUNTIME_API_KEY", metavar="KEY", help="The node's API key.")
]


def connect(url: str, api_key: str | None) -> NodeClient:
    """Return a client of the node, to be used as a context manager."""
    from runtime.cli.client import NodeClient

    return NodeClient(url, api_key)
