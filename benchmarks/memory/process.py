"""The process that is measured: it loads a slice as a stage does, and runs sequences over it to the end of the context.

    python -m benchmarks.memory.process ORDER

``ORDER`` is JSON; see :class:`~benchmarks.memory.case.Order`. One line of JSON comes out.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.memory.case import Case, Measured, Order
from runtime.inference.compute import ComputeThread
from runtime.inference.protocol import Hidden, OpenSequence, Row, Step
from runtime.spi import Checkpoint, ModelFamily, Sampling, read_checkpoint
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import load_plugins
from runtime.wire import Tensor

if TYPE_CHECKING:
    from runtime.inference.sequence import StageSequences
    from runtime.inference.shard import Shard

DECODED = 8
"""Tokens that each sequence generates after its prompt, all sequences together."""


def resident(field: str = "VmRSS") -> int:
    """Return resident bytes of this process: now, or with ``VmHWM`` at most since :func:`forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; this needs Linux")


def forget_peak() -> None:
    """Let ``VmHWM`` start anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def families() -> dict[str, ModelFamily]:
    """Return every model family that is installed."""
    plugins = load_plugins()
    context = PluginContext(node="benchmark", data_dir=Path("/nonexistent"))
    return {name: plugins.make("family", name, {}, context) for name in plugins.names("family")}


def load(order: Order, checkpoint: Checkpoint) -> Shard:
    """Load the slice as a stage loads it. Runs on the compute thread."""
    from runtime.inference import sequence  # noqa: F401 - imported where MLX is, as a stage does
    from runtime.inference.loading import load_shard

    span = order.case.span(checkpoint.num_layers)
    return load_shard(families(), checkpoint, span, order.case.options, lambda done, total: None)


def steps(case: Case, width: int) -> Iterator[Step | Hidden]:
    """Yield the steps of all sequences: each prompt by chunks, by turns, then tokens of all of them at once."""
    prefilled = case.workload.context - DECODED
    sequences = range(case.workload.sequences)
    numbers = itertools.count(1)
    for position in range(0, prefilled, case.workload.prefill_chunk):
        length = min(case.workload.prefill_chunk, prefilled - position)
        for sequence in sequences:
            yield _step(case, next(numbers), None, ((sequence, position),), length, width)
    for position in range(prefilled, case.workload.context):
        yield _step(case, next(numbers), 1, tuple((sequence, position) for sequence in sequences), 1, width)


def _step(
    case: Case, number: int, batch: int | None, places: tuple[tuple[int, int], ...], length: int, width: int
) -> Step | Hidden:
    if case.start == 0:
        return Step(number, batch, tuple(Row(*place, (5,) * length) for place in places))
    rows = tuple((*place, length) for place in places)
    return Hidden(number, batch, rows, (), {"hidden": _hidden(len(places), length, width, case.options.dtype)})


async def run(order: Order) -> Measured:
    """Measure one case."""
    compute = ComputeThread()
    checkpoint = read_checkpoint(Path(order.folder))
    await compute.run(_prepare)
    idle = resident()
    forget_peak()
    shard = await compute.run(lambda: load(order, checkpoint))
    loading, loaded = resident("VmHWM"), resident()
    await _generate(compute, shard, order.case, checkpoint)
    arrays = await compute.run(_arrays)
    peak = resident("VmHWM")
    compute.close(10.0)
    return Measured(idle, loading, loaded, peak, arrays)


def _prepare() -> None:
    from runtime.inference.accelerator import prepare

    prepare()


def _arrays() -> int:
    import mlx.core as mx

    return int(mx.get_peak_memory())


async def _generate(compute: ComputeThread, shard: Shard, case: Case, checkpoint: Checkpoint) -> None:
    """Fill every sequence's context, with steps queued as a driver queues them."""
    from runtime.inference.microbatch import StageSequence
    from runtime.inference.sequence import StageSequences

    opened = (
        OpenSequence(number, (1,), case.workload.context, Sampling(temperature=0.0), 0, None, (), 0)
        for number in range(case.workload.sequences)
    )
    stage = StageSequences(shard, {each.sequence: StageSequence(each) for each in opened})
    width = int(checkpoint.text_config["hidden_size"])
    done: list[asyncio.Future[None]] = []
    for step in steps(case, width):
        done.append(_submit(compute, stage, step))
        if len(done) > 1:
            await done[-2]
    await asyncio.gather(*done)


def _submit(compute: ComputeThread, stage: StageSequences, step: Step | Hidden) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finished(value: Any, error: BaseException | None) -> None:
        del value
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    dispatch: Callable[[], Any] = lambda: stage.step(step)  # noqa: E731 - named for its type, which mypy does not infer for an argument
    compute.submit(dispatch, finished)
    return future


def _hidden(rows: int, length: int, width: int, dtype: str) -> Tensor:
    nbytes = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    return Tensor(dtype=dtype, shape=(rows, length, width), data=b"\0" * (rows * length * width * nbytes))


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Order)))).decode())
