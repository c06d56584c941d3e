"""``runtime ls``."""

from __future__ import annotations

import time

from runtime.cli.options import Json
from runtime.cli.output import print_json, print_table
from runtime.cli.quantities import duration, file_size, parameters
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect


def ls(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models on a node's machine."""
    with connect(url, api_key) as node:
        models = node.get("models")["models"]
    if as_json:
        print_json(models)
        return
    now = time.time()
    print_table(
        ("NAME", "SIZE", "PARAMETERS", "QUANTIZATION", "CONTEXT", "LAYERS", "SOURCE", "MODIFIED"),
        (
            (
                each["name"],
                file_size(each["bytes"]),
                parameters(each["parameters"]),
                each["quantization"],
                each["context"],
                each["layers"],
                each["source"],
                f"{duration(now - each['modified'])} ago",
            )
            for each in models
        ),
    )
