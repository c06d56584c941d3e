"""``runtime actors``."""

from __future__ import annotations

from runtime.cli.options import Json
from runtime.cli.output import print_json, print_table
from runtime.cli.quantities import duration
from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect


def actors(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the living actors of a node as a tree, and the messages that reached none.

    MAILBOX is how many messages wait. An actor's children follow it, indented.
    """
    with connect(url, api_key) as node:
        found = node.get("actors")
    if as_json:
        print_json(found)
        return
    depths: dict[str, int] = {}
    rows: list[tuple[object, ...]] = []
    for each in found["actors"]:
        path, parent = each["path"], each["parent"]
        depth = depths[path] = 0 if parent is None else depths[parent] + 1
        name = path if parent is None else path.removeprefix(parent)
        rows.append(
            (
                "  " * depth + name,
                each["mailbox"],
                each["handled"],
                each["restarts"],
                duration(each["age"]),
                each["last_error"],
            )
        )
    print_table(("ACTOR", "MAILBOX", "HANDLED", "RESTARTS", "AGE", "LAST ERROR"), rows)
    if found["dead_letters"]:
        print_table(("DEAD LETTERS", ""), sorted(found["dead_letters"].items()))
