"""``runtime nodes``."""

from __future__ import annotations

from runtime.cli.options import Json
from runtime.cli.output import print_json, print_table
from runtime.cli.quantities import duration, memory
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect


def nodes(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the nodes, as one of them sees the others."""
    with connect(url, api_key) as node:
        entries = node.get("nodes")["nodes"]
    if as_json:
        print_json(entries)
        return
    print_table(
        ("NODE", "STATE", "ADDRESS", "BACKEND", "AVAILABLE", "MEMORY", "VERSION", "RTT", "PHI", "LAST SEEN", "REASON"),
        (
            (
                each["name"] or None,
                each["state"],
                each["address"],
                each["backend"],
                memory(each["memory_available"]),
                memory(each["memory_total"]),
                each["version"],
                None if each["rtt"] is None else f"{each['rtt'] * 1000:.1f} ms",
                None if each["phi"] is None else f"{each['phi']:.1f}",
                None if each["last_seen"] is None else f"{duration(each['last_seen'])} ago",
                each["reason"],
            )
            for each in entries
        ),
    )
