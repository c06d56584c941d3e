"""Measure how far the memory estimate is from what a process takes. Linux only.

    uv run python -m benchmarks.memory [--json] [--only MODEL]

Every row is a fresh process that loads a slice as a stage does and fills the contexts of its sequences. The exit status
is 1 where the error is more than 5 % and more than 50 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec

from benchmarks.memory.case import Case, Measured, Order, Row
from benchmarks.memory.checkpoints import MODELS
from runtime.spi import Checkpoint, LoadOptions, Workload, read_checkpoint
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import load_plugins

EXPANDED = LoadOptions("float32", dequantize=True)
PACKED = LoadOptions("float32", dequantize=False)

CASES = (
    Case("smollm2:135m", 0, 30, Workload(1024, 1, 512), EXPANDED),
    Case("smollm2:135m", 0, 15, Workload(1024, 4, 256), EXPANDED),
    Case("smollm2:135m", 15, 30, Workload(512, 8, 512), EXPANDED),
    Case("smollm2:135m", 10, 20, Workload(2048, 2, 1024), EXPANDED),
    Case("smollm2:135m", 0, 30, Workload(64, 2, 32), PACKED),
    Case("llama", 0, 6, Workload(256, 1, 256), PACKED),
    Case("llama", 2, 4, Workload(1024, 2, 512), PACKED),
    Case("llama, 4 bit", 0, 6, Workload(128, 1, 128), EXPANDED),
    Case("llama, 4 bit", 4, 6, Workload(32, 2, 16), PACKED),
    Case("qwen3", 0, 6, Workload(256, 2, 256), PACKED),
    Case("gemma3", 0, 8, Workload(1024, 1, 256), PACKED),
    Case("mixtral", 0, 4, Workload(256, 1, 256), PACKED),
    Case("mixtral", 1, 3, Workload(256, 4, 128), PACKED),
    Case("deepseek_v3", 0, 4, Workload(512, 2, 256), PACKED),
    Case("mamba2", 0, 8, Workload(512, 2, 256), PACKED),
    Case("lfm2", 0, 8, Workload(512, 2, 256), PACKED),
)


def measure(cases: list[Case]) -> Iterator[Row]:
    """Measure cases, in the order they come; a model's checkpoint is there only while its cases are measured."""
    estimator = load_plugins().make("memory", "safetensors", {}, PluginContext(node="benchmark", data_dir=Path()))
    for model, of_model in groupby(cases, lambda case: case.model):
        with tempfile.TemporaryDirectory() as place:
            folder = _written(model, Path(place) / "model")
            checkpoint = read_checkpoint(folder)
            for case in of_model:
                span = case.span(checkpoint.num_layers)
                estimate = estimator.estimate(checkpoint, span, case.workload, case.options)
                yield Row.of(case, _how(checkpoint, case), estimate, _run(Order(str(folder), case)))


def _written(model: str, path: Path) -> Path:
    """Write a model in a process of its own, so that the measuring one never has it in memory."""
    return Path(_output("-m", "benchmarks.memory.checkpoints", model, str(path)).splitlines()[-1])


def _run(order: Order) -> Measured:
    text = _output("-m", "benchmarks.memory.process", msgspec.json.encode(order).decode())
    return msgspec.json.decode(text.splitlines()[-1], type=Measured)


def _output(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own modules


def _how(checkpoint: Checkpoint, case: Case) -> str:
    if checkpoint.quantization is None:
        return "float32"
    return "expanded" if case.options.dequantize else "packed"


def main() -> int:
    """Measure, and print a table in Markdown, a line a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", choices=MODELS, action="append", help="measure this model; may be repeated")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print(Row.heading())
    for row in measure([case for case in CASES if not options.only or case.model in options.only]):
        rows.append(row)
        if not options.json:
            print(row.line(), flush=True)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
