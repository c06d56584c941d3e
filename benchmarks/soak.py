"""Kill, freeze and cut off nodes under load, and see whether any client notices more than a pause::

    uv run python -m benchmarks.soak --seconds 600

The exit code is 1 if a stream ended otherwise than undisturbed, or if a
node holds more in the end than it did before. ``--tiny`` takes a random model of four layers instead
of the embedded one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.chaos.soak import soak, summary


def main() -> int:
    """Run it, and print what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="of each stream")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = "smollm2:135m"
        if options.tiny:
            from runtime.testing.models import tiny_llama

            model = str(tiny_llama(Path(folder) / "tiny"))
        rounds = soak(
            Path(folder),
            model,
            seconds=options.seconds,
            streams=options.streams,
            tokens=options.tokens,
            seed=options.seed,
            settings=("models.context=1024",),
            report=partial(print, file=sys.stderr, flush=True),
        )
    found = summary(rounds)
    print(json.dumps(found, indent=2))
    return 1 if found["wrong"] or found["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
