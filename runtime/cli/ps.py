"""``runtime ps``."""

from __future__ import annotations

import time

from runtime.cli.options import Json
from runtime.cli.output import print_json, print_table
from runtime.cli.quantities import duration, memory
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect


def ps(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models being served, and which node holds which layers.

    A model's row comes first, and then one for each of its stages.
    """
    with connect(url, api_key) as node:
        models = node.get("ps")["models"]
    if as_json:
        print_json(models)
        return
    rows: list[tuple[object, ...]] = []
    for model in models:
        expires = model["expires"]
        rows.append(
            (
                model["name"],
                "",
                "",
                memory(sum(stage["bytes"] for stage in model["stages"])),
                model["context"],
                model["active"],
                "never" if expires is None else f"in {duration(expires - time.time())}",
            )
        )
        rows += [
            ("", stage["node"], f"{stage['first_layer']}-{stage['last_layer']}", memory(stage["bytes"]), "", "", "")
            for stage in model["stages"]
        ]
    print_table(("MODEL", "NODE", "LAYERS", "MEMORY", "CONTEXT", "ACTIVE", "EXPIRES"), rows)
