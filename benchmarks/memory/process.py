"""The process that is measured: it loads a slice as a stage does, and runs sequences over it to the end of the context.

    python -m benchmarks.memory.process ORDER

``ORDER`` is JSON; see :class:`~benchmarks.memory.case.Order`. One line of JSON comes out.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.memory.case import Case, Measured, Order
from runtime.inference.compute import ComputeThread
from runtime.inference.protocol import Hidden, OpenSequence, Step
from runtime.spi import Checkpoint, ModelFamily, Sampling, read_checkpoint
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import load_plugins
from runtime.wire import Tensor

if TYPE_CHECKING:
    from runtime.inference.sequence import StageSequence
    from runtime.inference.shard import Shard

DECODED = 8
"""Tokens that each sequence generates after its prompt, all sequences by turns."""


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


def prompts(case: Case) -> Iterator[tuple[int, int, bool]]:
    """Yield position, length and whether it samples, for each step of one sequence: chunks, then single tokens."""
    prefilled = case.workload.context - DECODED
    for position in range(0, prefilled, case.workload.prefill_chunk):
        yield position, min(case.workload.prefill_chunk, prefilled - position), False
    for position in range(prefilled, case.workload.context):
        yield position, 1, True


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
    """Fill every sequence's context, the sequences by turns, with steps queued as a driver queues them."""
    from runtime.inference.sequence import StageSequence

    sequences = [
        StageSequence(shard, OpenSequence(number, (1,), Sampling(temperature=0.0), 0, None))
        for number in range(case.workload.sequences)
    ]
    width = int(checkpoint.text_config["hidden_size"])
    done: list[asyncio.Future[None]] = []
    for position, length, sample in prompts(case):
        for number, sequence in enumerate(sequences):
            if shard.span.is_first:
                step: Step | Hidden = Step(number, position, (5,) * length, sample)
            else:
                step = Hidden(number, position, {"hidden": _hidden(length, width, case.options.dtype)}, sample)
            done.append(_submit(compute, sequence, step))
            if len(done) > 1:
                await done[-2]
    await asyncio.gather(*done)


def _submit(compute: ComputeThread, sequence: StageSequence, step: Step | Hidden) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finished(value: Any, error: BaseException | None) -> None:
        del value
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    dispatch: Callable[[], Any] = lambda: sequence.step(step)  # noqa: E731 - named for its type, which mypy does not infer for an argument
    compute.submit(dispatch, finished)
    return future


def _hidden(length: int, width: int, dtype: str) -> Tensor:
    nbytes = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    return Tensor(dtype=dtype, shape=(1, length, width), data=b"\0" * (length * width * nbytes))


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Order)))).decode())
