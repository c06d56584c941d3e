"""Measure the kernel: every row is a ratio of two things measured in the same run.

    uv run --group bench python -m benchmarks.kernel [--json] [--only WORD]

Each row is measured on asyncio's own event loop and on uvloop's. The exit status is 1 where an aim is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
from loguru import logger

from benchmarks.rows import local, memory, remote
from benchmarks.rows.row import Row

GROUPS: dict[str, Callable[[str], AsyncIterator[Row]]] = {
    "local": local.rows,
    "remote": remote.rows,
    "memory": memory.rows,
}
"""Groups of rows by name; each is given the name of the event loop that it runs on."""


async def measure(group: Callable[[str], AsyncIterator[Row]], loop: str, report: Callable[[Row], None]) -> list[Row]:
    """Measure the rows of a group on the running loop."""
    measured = []
    async for row in group(loop):
        measured.append(row)
        report(row)
        gc.collect()
    return measured


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the event loops there are, by name."""
    found: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        return found
    return {**found, "uvloop": uvloop.new_event_loop}


def main() -> int:
    """Measure, and print a line a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", choices=GROUPS, action="append", help="measure this group of rows; may be repeated")
    options = parser.parse_args()
    logger.remove()

    def report(row: Row) -> None:
        if not options.json:
            print(
                f"{row.name:<34} {row.against:<22} {row.loop:<8} {row.ours:>12,.0f} {row.theirs:>12,.0f} {row.unit:<5}"
                f" {row.ratio:>7.2f} (aim {row.aim}){'' if row.met else '  NOT MET'}",
                flush=True,
            )

    rows: list[Row] = []
    for name in options.only or GROUPS:
        for loop, factory in loops().items():
            with asyncio.Runner(loop_factory=factory) as runner:
                rows += runner.run(measure(GROUPS[name], loop, report))
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
