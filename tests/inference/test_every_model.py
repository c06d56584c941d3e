"""Every text model of mlx-lm that a family claims computes, cut at any layer, bit for bit what it computes whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.inference.check import CutResult, RandomModel, check
from runtime.spi import Checkpoint, ModelFamily
from runtime.testing.tiny import TINY_MODULES, tiny_config
from runtime_crossing.architectures import CROSSING_MODULES
from runtime_crossing.family import CrossingFamily
from runtime_dense.architectures import DENSE_MODULES, REFUSED_MODULES
from runtime_dense.family import DenseFamily
from runtime_moe.architectures import MOE_MODULES
from runtime_moe.family import MoeFamily
from tests.inference import metal_kernels

FAMILIES: Mapping[str, ModelFamily] = {"dense": DenseFamily(), "moe": MoeFamily(), "crossing": CrossingFamily()}
CLAIMED = sorted(DENSE_MODULES | MOE_MODULES | CROSSING_MODULES.keys())
ONE_AT_A_TIME = {"deepseek_v41", "gpt_bigcode", "llama4"}
"""mlx-lm itself runs no ragged batches of these."""
TRAVELS = {
    "afm7": {"hidden", "keys.2", "values.2"},
    "deepseek_v41": {"hidden", "pre_mix", "compress_kv", "index_k", "topk_idx", "candidates"},
    "gemma3n": {"hidden", "inputs", "keys.2", "values.2", "keys.3", "values.3"},
    "gemma4": {"hidden", "inputs", "keys.2", "values.2", "keys.3", "values.3"},
    "gemma4_text": {"hidden", "inputs", "keys.2", "values.2", "keys.3", "values.3"},
    "hunyuan": {"hidden", "keys", "values"},
    "kimi_k3": {"hidden", "blocks", "norms"},
    "rwkv7": {"hidden", "first_values"},
    "talkie": {"hidden", "embedding"},
}
"""What crosses the cuts where it is not the hidden state alone."""


@pytest.fixture
def kernels_of_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what runs on Metal alone, on other machines."""
    if mx.metal.is_available():
        return
    from mlx_lm.models import muse_spark
    from mlx_lm.models.bitlinear_layers import BitLinear

    monkeypatch.setattr(BitLinear, "execute_matmul_kernel", metal_kernels.ternary_product)
    for kernel in (
        metal_kernels.expert_routing,
        metal_kernels.norm_add_norm,
        metal_kernels.post_expert_norm_combine,
        metal_kernels.pre_norm,
        metal_kernels.qk_norm,
        metal_kernels.qk_norm_rope,
        metal_kernels.rms_norm_sigmoid_gate,
    ):
        monkeypatch.setattr(muse_spark, kernel.__name__, kernel)


def subject(config: dict[str, Any], dtype: str = "float32") -> RandomModel:
    return RandomModel(FAMILIES, Checkpoint(path=Path(config["model_type"]), config=config, tensors={}), dtype)


def results(config: dict[str, Any], dtype: str = "float32") -> Iterator[CutResult]:
    """Cut once at every layer; then make a stage of every layer, and run the batch through those."""
    model = subject(config, dtype)
    yield from check(model, [(cut,) for cut in range(1, model.layers)], batch=False)
    yield from check(model, [tuple(range(1, model.layers))])


@pytest.mark.usefixtures("kernels_of_metal")
@pytest.mark.parametrize("module", CLAIMED)
def test_a_model_is_bit_exact_at_every_cut_alone_and_in_a_ragged_batch(module: str) -> None:
    found = list(results(tiny_config(module)))
    assert [result.cuts for result in found if not result.is_exact] == []
    assert (found[-1].batch_difference is None) == (module in ONE_AT_A_TIME)
    assert set().union(*(result.state for result in found)) == TRAVELS.get(module, {"hidden"})


def test_every_module_is_claimed_by_one_family_or_refused_with_a_reason() -> None:
    claims = [*DENSE_MODULES, *MOE_MODULES, *CROSSING_MODULES, *REFUSED_MODULES]
    assert sorted(claims) == sorted(TINY_MODULES)
    assert len(CLAIMED) >= 115
