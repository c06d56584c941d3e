"""Measure the pause that a client sees when a node that its generation needs is lost::

    uv run python -m benchmarks.recovery [--rounds 10] [--disturbance kill] [--streams 1] [--tokens 64]

The embedded model over three nodes on this machine, in rounds as in ``benchmarks.soak``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.chaos.soak import DISTURBANCES, KILL, soak


def main() -> int:
    """Run the rounds, and print the pauses as JSON; return 1 if a text was another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--disturbance", choices=DISTURBANCES, default=KILL)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = soak(
            Path(folder),
            "smollm2:135m",
            seconds=0,
            streams=options.streams,
            tokens=options.tokens,
            seed=options.seed,
            settings=("models.context=1024",),
            disturbances=(options.disturbance,) * options.rounds,
            report=partial(print, file=sys.stderr, flush=True),
            after_first_text=True,
        )
    pauses = [each.pause for each in rounds if each.running]
    found = {
        "disturbance": options.disturbance,
        "rounds in which the stream was under way": len(pauses),
        "of which the driver's node was lost": sum(each.driver == each.victim for each in rounds),
        "wrong": sum(each.wrong for each in rounds),
        "pause, median, s": round(statistics.median(pauses), 2),
        "pause, most, s": round(max(pauses), 2),
        "pauses, s": [round(pause, 2) for pause in pauses],
    }
    print(json.dumps(found, indent=2))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
