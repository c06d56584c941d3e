"""The estimator: exact weights, caches by kind, and parts that say where the memory goes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, MemoryEstimate, TensorInfo, Workload, read_checkpoint
from runtime.spi.memory import KV_CACHE
from runtime.testing.models import tiny_llama
from runtime_memory.estimator import SafetensorsEstimator
from runtime_memory.weights import Group

WORKLOAD = Workload(context=1000, sequences=2, prefill_chunk=128)
FULL = LoadOptions(dtype="float32", dequantize=False)

_models: dict[str, Checkpoint] = {}


def _checkpoint(**options: Any) -> Checkpoint:
    """Headers of a tiny model; made once for each set of options, for hypothesis asks many times."""
    key = repr(sorted(options.items()))
    if key not in _models:
        with tempfile.TemporaryDirectory() as folder:
            _models[key] = read_checkpoint(tiny_llama(Path(folder), **options))
    return _models[key]


def _part(estimate: MemoryEstimate, name: str) -> int:
    (found,) = [part.bytes for part in estimate.parts if part.name == name]
    return found


def _estimate(
    checkpoint: Checkpoint, span: LayerSpan | None = None, options: LoadOptions = FULL, workload: Workload = WORKLOAD
) -> MemoryEstimate:
    span = span or LayerSpan.whole(checkpoint.num_layers)
    return SafetensorsEstimator().estimate(checkpoint, span, workload, options)


def _attribute(model: Any, name: str) -> Any:
    for step in name.split("."):
        model = model[int(step)] if step.isdigit() else getattr(model, step)
    return model


@settings(deadline=None)  # each new set of options makes its model once
@given(
    cuts=st.sets(st.integers(1, 5)),
    tied=st.booleans(),
    quantize=st.sampled_from([None, 4, 8]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    dequantize=st.booleans(),
)
def test_the_stages_of_any_cut_add_up_to_the_whole_and_the_repeated_embedding(
    cuts: set[int], tied: bool, quantize: int | None, dtype: str, dequantize: bool
) -> None:
    checkpoint = _checkpoint(layers=6, tied=tied, quantize=quantize)
    options = LoadOptions(dtype=dtype, dequantize=dequantize)
    edges = [0, *sorted(cuts), 6]
    stages = [_estimate(checkpoint, LayerSpan(a, b, 6), options) for a, b in itertools.pairwise(edges)]
    whole = _estimate(checkpoint, options=options)

    embedding = {name: t for name, t in checkpoint.tensors.items() if name.startswith("model.embed_tokens.")}
    alone = Checkpoint(checkpoint.path, {**checkpoint.config, "num_hidden_layers": 1}, embedding)
    repeated = _part(_estimate(alone, options=options), "weights") if tied and cuts else 0

    assert sum(_part(stage, "weights") for stage in stages) == _part(whole, "weights") + repeated
    assert sum(_part(stage, KV_CACHE) for stage in stages) == _part(whole, KV_CACHE)


@pytest.mark.parametrize("quantize", [None, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_weights_are_what_mlx_holds_after_loading(tmp_path: Path, quantize: int | None, dtype: str) -> None:
    import mlx.core as mx
    from mlx_lm import load

    folder = tiny_llama(tmp_path, quantize=quantize, dtype="bfloat16", tied=False)
    model = load(str(folder))[0]
    model.set_dtype(getattr(mx, dtype))
    held = 0
    for name in read_checkpoint(folder).tensors:
        held += _attribute(model, name).nbytes
    options = LoadOptions(dtype=dtype, dequantize=False)
    assert _part(_estimate(read_checkpoint(folder), options=options), "weights") == held


def test_expanded_weights_are_those_of_the_model_before_it_was_quantized() -> None:
    options = LoadOptions(dtype="float16", dequantize=True)
    for bits in (4, 8):
        expanded = _estimate(_checkpoint(quantize=bits, tied=False), options=options)
        assert _part(expanded, "weights") == _part(_estimate(_checkpoint(tied=False), options=options), "weights")


def test_a_module_with_its_own_group_size_is_expanded_by_it() -> None:
    checkpoint = _checkpoint(layers=1, quantize=4, tied=False)
    section = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 4}}
    scales = checkpoint.tensors["lm_head.scales"]
    alone = Checkpoint(
        checkpoint.path,
        {**checkpoint.config, "quantization": section},
        {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("lm_head.")},
    )
    weights = _part(_estimate(alone, options=LoadOptions("float16", dequantize=True)), "weights")
    assert weights == scales.size * 32 * 2


def test_packed_weights_without_a_group_size_are_refused() -> None:
    checkpoint = _checkpoint(quantize=4)
    bare = Checkpoint(
        checkpoint.path, {k: v for k, v in checkpoint.config.items() if k != "quantization"}, checkpoint.tensors
    )
    with pytest.raises(CheckpointCorrupt, match="group_size"):
        _estimate(bare, options=LoadOptions("float16", dequantize=True))


def test_the_cache_is_what_mlx_lm_allocates(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    folder = tiny_llama(tmp_path)
    model = load(str(folder))[0]
    caches = make_prompt_cache(model)
    model(mx.zeros((2, 1000), dtype=mx.int32), cache=caches)
    held = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert _part(_estimate(read_checkpoint(folder)), KV_CACHE) == held


def test_a_sliding_layer_is_bounded_by_its_window_and_the_chunk() -> None:
    token = 2 * 2 * 16 * 4  # keys and values, two heads of 16, float32
    workload = Workload(context=4096, sequences=1, prefill_chunk=100)
    cache = _part(_estimate(_checkpoint(sliding=64), workload=workload), KV_CACHE)
    assert cache == 2 * token * 4096 + 2 * token * (64 + 100)


@settings(deadline=None)  # the first example makes the model
@given(
    start=st.integers(0, 5),
    length=st.integers(1, 6),
    context=st.integers(1, 100_000),
    sequences=st.integers(1, 64),
    chunk=st.integers(1, 4096),
)
def test_more_of_anything_never_needs_less(start: int, length: int, context: int, sequences: int, chunk: int) -> None:
    checkpoint = _checkpoint(layers=6, sliding=64)
    span = LayerSpan(start, min(6, start + length), 6)
    base = Workload(context=context, sequences=sequences, prefill_chunk=chunk)
    total = _estimate(checkpoint, span, workload=base).total
    for more in ({"context": context + 300}, {"sequences": sequences + 1}, {"prefill_chunk": chunk + 64}):
        assert _estimate(checkpoint, span, workload=msgspec.structs.replace(base, **more)).total >= total
    assert total > 0


def test_only_the_last_stage_pays_for_the_head_and_the_logits() -> None:
    checkpoint = _checkpoint(layers=4, tied=False)
    first, last = _estimate(checkpoint, LayerSpan(0, 2, 4)), _estimate(checkpoint, LayerSpan(2, 4, 4))
    assert _part(first, "logits") == 0
    assert _part(last, "logits") == 2 * 320 * (4 + 12)
    # Both ends hold a vocabulary's worth; the last one the final norm too.
    assert _part(last, "weights") - _part(first, "weights") == 64 * 4


def test_parts_that_no_text_model_loads_do_not_count() -> None:
    checkpoint = _checkpoint(layers=2)
    more = TensorInfo("vision_tower.layers.0.w.weight", "F32", (1000, 1000), Path("x"), 0, 4_000_000)
    beyond = TensorInfo("model.layers.2.mtp.weight", "F32", (1000, 1000), Path("x"), 0, 4_000_000)
    tensors = {**checkpoint.tensors, more.name: more, beyond.name: beyond}
    padded = Checkpoint(checkpoint.path, checkpoint.config, tensors)
    assert _estimate(padded) == _estimate(checkpoint)


def test_the_estimate_of_working_memory_covers_what_a_prefill_takes(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    folder = tiny_llama(tmp_path, layers=4, hidden=256, heads=8, kv_heads=4)
    model = load(str(folder))[0]
    caches = make_prompt_cache(model)
    mx.eval(model.parameters())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(4):
        model(mx.zeros((1, 256), dtype=mx.int32), cache=caches)
        mx.eval([cache.state for cache in caches])
    spent = mx.get_peak_memory() - before
    workload = Workload(context=1024, sequences=1, prefill_chunk=256)
    estimate = _estimate(read_checkpoint(folder), workload=workload)
    claimed = _part(estimate, KV_CACHE) + _part(estimate, "working memory")
    assert spent <= claimed, "the estimate is too small"
    assert claimed <= 4 * spent, "the estimate is far too large"


def test_loading_counts_only_where_it_takes_more_than_what_comes_later() -> None:
    checkpoint = _checkpoint(layers=1, hidden=256, vocab=40000, quantize=8, tied=False)
    options = LoadOptions("float32", dequantize=True)
    tiny, large = (
        _estimate(checkpoint, options=options, workload=workload)
        for workload in (Workload(context=16, sequences=1, prefill_chunk=16), Workload(8192, 8, 512))
    )
    assert _part(tiny, "loading") > 0
    assert _part(large, "loading") == 0


def test_what_is_loaded_before_adds_to_the_peak_and_what_comes_after_does_not() -> None:
    large, small = Group(resident=100, peak=150), Group(resident=30, peak=40)
    assert large.then(small) == (130, 150)
    assert small.then(large) == (130, 180)


def test_no_slice_needs_more_than_one_that_it_lies_in() -> None:
    checkpoint = _checkpoint(layers=6, sliding=64, quantize=4, tied=False)
    spans = [LayerSpan(start, stop, 6) for start in range(6) for stop in range(start + 1, 7)]
    for options in (FULL, LoadOptions("float32", dequantize=True)):
        needs = {span: _estimate(checkpoint, span, options=options).total for span in spans}
        for inner, outer in itertools.product(spans, spans):
            if outer.start <= inner.start and inner.stop <= outer.stop:
                assert needs[inner] <= needs[outer]


def test_a_configuration_without_sizes_is_refused() -> None:
    checkpoint = _checkpoint()
    config = {key: value for key, value in checkpoint.config.items() if key != "hidden_size"}
    with pytest.raises(CheckpointCorrupt, match="hidden_size"):
        _estimate(Checkpoint(checkpoint.path, config, checkpoint.tensors))
