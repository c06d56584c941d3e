"""Measure how soon the slots of clients that all hang up at once are free::

    uv run python -m benchmarks.disconnects [--clients 16] [--storms 10]

The embedded model over two nodes on this machine. The exit code is 1 if a storm took longer than 100 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.processes import pair
from benchmarks.chaos.storms import storm

MODEL = "smollm2:135m"
AIM = 0.1


def main() -> int:
    """Run the storms, and print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--storms", type=int, default=10)
    options = parser.parse_args()
    settings = (f"models.sequences={options.clients}", "models.context=1024")
    with tempfile.TemporaryDirectory() as folder, pair(Path(folder), *settings) as (a, _):
        a.load(MODEL)
        body: dict[str, object] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 900, "temperature": 0}
        body["logit_bias"] = {"0": -100, "2": -100}  # what would end the text
        seconds = [storm(a, body, options.clients) for _ in range(options.storms)]
    found = {
        "clients": options.clients,
        "storms": len(seconds),
        "until all slots are free, median / most, ms": [
            round(statistics.median(seconds) * 1000, 1),
            round(max(seconds) * 1000, 1),
        ],
    }
    print(json.dumps(found, indent=2))
    return 1 if max(seconds) > AIM else 0


if __name__ == "__main__":
    sys.exit(main())
