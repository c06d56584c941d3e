"""``runtime plugins``."""

from __future__ import annotations

import msgspec

from runtime.cli.options import ConfigFiles, Json, Overrides, enabled_plugins
from runtime.cli.output import print_json, print_table


def plugins(config: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False) -> None:
    """List the plugins, their versions, hooks and status.

    A plugin that failed is listed with the reason. A configuration may disable plugins, so it may be given here too.
    """
    records = enabled_plugins(config, overrides).records
    if as_json:
        print_json([msgspec.to_builtins(record) for record in records])
        return
    print_table(
        ("PLUGIN", "VERSION", "DISTRIBUTION", "STATUS", "HOOKS", "REASON"),
        (
            (
                each.name,
                each.version,
                each.distribution,
                each.status,
                [hook.removeprefix("register_") for hook in each.hooks],
                each.reason,
            )
            for each in records
        ),
    )
