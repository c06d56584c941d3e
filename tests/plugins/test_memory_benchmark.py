"""The measurement of the estimate: that it measures, and that what the document shows is what it measures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.memory.__main__ import CASES
from benchmarks.memory.case import Case, Measured, Order, Row
from runtime.spi import LoadOptions, Workload, read_checkpoint
from runtime.testing.models import tiny_llama
from runtime_memory.estimator import SafetensorsEstimator

ROOT = Path(__file__).parents[2]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_the_document_shows_every_case_and_each_within_the_aim() -> None:
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    heading = cells(Row.heading().partition("\n")[0])
    table = text[text.index("| Model | Layers |") :].partition("\n\n")[0].splitlines()
    assert cells(table[0]) == heading
    rows = [cells(line) for line in table[2:]]
    assert len(rows) == len(CASES) >= 12
    for row, case in zip(rows, CASES, strict=True):
        workload = case.workload
        assert row[0] == case.model
        assert row[1] == f"{case.start}-{case.stop - 1}"
        assert row[3:6] == [str(workload.context), str(workload.sequences), str(workload.prefill_chunk)]
        estimate, measured = int(row[6]), int(row[7])
        error = re.match(r"([+-]\d+) \(", row[8])
        assert error is not None
        assert abs(int(error[1]) - (estimate - measured)) <= 1
        assert abs(estimate - measured) <= max(0.05 * measured, 50)
        assert row[9] == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_process_takes_what_was_estimated(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", layers=2, hidden=512, heads=8, kv_heads=8, vocab=8000, dtype="bfloat16")
    case = Case("tiny", 0, 2, Workload(512, 2, 256), LoadOptions("float32", dequantize=False))
    order = msgspec.json.encode(Order(str(folder), case)).decode()
    command = [sys.executable, "-m", "benchmarks.memory.process", order]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    measured = msgspec.json.decode(found.splitlines()[-1], type=Measured)
    checkpoint = read_checkpoint(folder)
    estimate = SafetensorsEstimator().estimate(checkpoint, case.span(2), case.workload, case.options)
    row = Row.of(case, "float32", estimate, measured)
    weights = checkpoint.nbytes * 2  # bfloat16 on disk
    assert row.measured > weights + 2 * 512 * 2 * 2 * 512 * 4, "the caches were not filled"
    assert row.met, row
