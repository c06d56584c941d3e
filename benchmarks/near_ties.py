"""Count the texts that are others in a batch, or after a loss, than alone, in float32::

    uv run python -m benchmarks.near_ties [--texts 12] [--tokens 24] [--tiny] [--json]

Half of the texts are greedy and half are drawn with a seed. They are generated alone; in batches of two to sixteen
that others join and leave; and broken off at a token that is drawn, to be taken in by chunks and gone on with, as after
a loss. All that over one stage and over two. Where a text differs, the gap is by how much log-probability the two
tokens would have to come closer for the other to be chosen. Rounding makes tiny ones; the exit code is 1 if one is
above 1e-3.

``--tiny`` takes a random model of four layers, whose tokens are all about as likely, instead of the embedded one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate and compare, and print a table or JSON; return 1 if a text is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24, help="of each text, at least 2")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and of the order of events")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    # MLX is imported below, and the BLAS must be there before.
    from runtime.inference.accelerator import prepare

    prepare()
    from tokenizers import Tokenizer

    from benchmarks.memory.checkpoints import embedded
    from benchmarks.ties.compare import HEADING, compare
    from benchmarks.ties.texts import openings, wishes
    from runtime.spi import read_checkpoint
    from runtime.testing.models import tiny_llama
    from tests.inference.pipeline import shards

    with tempfile.TemporaryDirectory() as path:
        folder = tiny_llama(Path(path) / "tiny") if options.tiny else embedded(Path(path))
        layers = read_checkpoint(folder).num_layers
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        drawn = random.Random(options.seed)  # noqa: S311 - prompts, not secrets
        prompts = [tokenizer.encode(opening).ids for opening in openings(options.texts, drawn)]
        pipelines = {1: shards(folder, (0, layers)), 2: shards(folder, (0, layers // 2, layers))}
        rows = []
        if not options.json:
            print(HEADING, flush=True)
        for row in compare(pipelines, wishes(prompts), options.tokens, options.seed):
            rows.append(row)
            if not options.json:
                print(row.line(), flush=True)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
