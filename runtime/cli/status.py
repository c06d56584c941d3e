"""``runtime status``."""

from __future__ import annotations

import typer

from runtime.cli.options import Json
from runtime.cli.output import print_json
from runtime.cli.quantities import duration, memory
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect


def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Describe a node: version, backend, memory, and what it serves."""
    with connect(url, api_key) as node:
        found = node.get("status")
    if as_json:
        print_json(found)
        return
    available, total = memory(found["memory_available"]), memory(found["memory_total"])
    lines = {
        "node": found["node"],
        "version": found["version"],
        "process": f"{found['pid']}, up {duration(found['uptime'])}",
        "backend": found["backend"] + (f" with {found['blas']}" if found["blas"] else ""),
        "memory": f"{available} of {total} available, {memory(found['memory_reserved'])} granted to models",
        "cluster": f"{found['nodes']} live, {found['models']} served, {found['active']} generating",
        "default model": found["default_model"],
        "urls": ", ".join(found["urls"]),
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        typer.echo(f"{name.ljust(width)}  {text}")
