"""What a node measures of a model: layer by layer, from its configuration alone, and once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from runtime.errors import ModelUnsupported
from runtime.inference import probe as probing
from runtime.inference.probe import probe
from runtime.inference.probe_cache import Probes
from runtime.spi import Checkpoint, LayerSeconds, LoadOptions, ModelFamily
from runtime.testing.tiny import tiny_config
from runtime_crossing.family import CrossingFamily
from runtime_dense.family import DenseFamily
from runtime_moe.family import MoeFamily

FLOAT32 = LoadOptions("float32", dequantize=False)


def config(**changes: Any) -> dict[str, Any]:
    """A Llama whose head is much larger than a layer."""
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": 30000,
        "tie_word_embeddings": False,
        **changes,
    }


def checkpoint(settings: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("m"), settings, {})


def measured(settings: dict[str, Any], options: LoadOptions = FLOAT32) -> LayerSeconds:
    return probe({"dense": DenseFamily()}, checkpoint(settings), options)


def test_every_layer_has_its_time_and_the_last_one_that_of_the_head_too() -> None:
    seconds = measured(config())
    assert len(seconds.decode) == len(seconds.batched) == len(seconds.prefill) == 6
    assert min(*seconds.decode, *seconds.batched, *seconds.prefill) > 0
    # Layers of one kind are measured once.
    assert len(set(seconds.decode[:-1])) == len(set(seconds.batched[:-1])) == 1
    assert seconds.decode[-1] > seconds.decode[0]
    assert seconds.batched[-1] > seconds.batched[0]


def test_a_token_of_many_sequences_takes_less_than_one_alone_if_they_may_decode_together() -> None:
    wide = measured(config(vocab_size=300, intermediate_size=1 << 15))
    assert wide.batched[0] < wide.decode[0] / 2
    alone = probe({"dense": DenseFamily()}, checkpoint(tiny_config("gemma2")), FLOAT32)
    assert alone.batched == alone.decode


def test_a_model_of_one_layer_can_be_measured() -> None:
    assert len(measured(config(num_hidden_layers=1, vocab_size=300)).decode) == 1


def test_a_larger_layer_takes_longer() -> None:
    small, large = measured(config(vocab_size=300)), measured(config(vocab_size=300, intermediate_size=1 << 15))
    assert large.decode[0] > 2 * small.decode[0]


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_packed_weights_are_measured_packed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    types: set[str] = set()
    timed = probing._timed

    def spy(shard: Any, *args: Any) -> Any:
        types.update(type(module).__name__ for module in shard.model.layers[shard.span.start].modules())
        return timed(shard, *args)

    monkeypatch.setattr(probing, "_timed", spy)
    packing = {"group_size": 32, "bits": 4, "mode": mode, "model.layers.3.mlp.up_proj": False}
    measured(config(vocab_size=320, quantization=packing))
    assert "QuantizedLinear" in types
    types.clear()
    measured(config(vocab_size=320, quantization=packing), LoadOptions("float32", dequantize=True))
    assert "QuantizedLinear" not in types


@pytest.mark.parametrize("module", ["mixtral", "jamba", "gemma3n", "rwkv7"])
def test_experts_states_and_what_crosses_a_cut_are_measured_too(module: str) -> None:
    families: dict[str, ModelFamily] = {"dense": DenseFamily(), "moe": MoeFamily(), "crossing": CrossingFamily()}
    seconds = probe(families, checkpoint(tiny_config(module)), FLOAT32)
    assert min(*seconds.decode, *seconds.batched, *seconds.prefill) > 0


def test_layers_of_different_kinds_are_measured_each() -> None:
    seen: list[int] = []

    class Watched(DenseFamily):
        def build(self, config: dict[str, Any], tensors: Any = None) -> Any:
            model = super().build(config, tensors)
            wide = mx.zeros((512, 64))
            model.layers[2].mlp.up_proj.weight = wide
            model.layers[2].mlp.gate_proj.weight = wide
            model.layers[2].mlp.down_proj.weight = wide.T
            seen.append(1)
            return model

    seconds = probe({"watched": Watched()}, checkpoint(config(vocab_size=300)), FLOAT32)
    assert len(set(seconds.decode[:-1])) == 2
    assert seconds.decode[2] not in seconds.decode[:2]


def test_a_layer_that_is_too_large_is_refused_and_a_head_counts_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = 4 * (3 * 64 * 128 + 2 * 64 * 64 + 2 * 64 * 32 + 2 * 64)
    monkeypatch.setattr(probing, "_limit", lambda: float(layer - 1))
    with pytest.raises(ModelUnsupported, match="more than a probe may"):
        measured(config())
    monkeypatch.setattr(probing, "_limit", lambda: float(layer))
    seconds = measured(config())
    head = 4 * (64 + 64 * 30000)
    for each in (seconds.decode, seconds.batched):
        assert each[-1] == pytest.approx(each[0] * (layer + head) / layer)


# -- on disk ----------------------------------------------------------------------------------------------------------


class Counting(DenseFamily):
    """Counts how often a model is built."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, config: dict[str, Any], tensors: Any = None) -> Any:
        self.built += 1
        return super().build(config, tensors)


def test_what_was_measured_is_kept_for_other_processes_and_each_way_to_load_is_its_own(tmp_path: Path) -> None:
    family = Counting()
    families: dict[str, ModelFamily] = {"dense": family}
    settings = config(vocab_size=300)
    first = Probes(families, tmp_path / "probes").seconds(settings, FLOAT32)
    built = family.built
    assert built
    assert Probes(families, tmp_path / "probes").seconds(settings, FLOAT32) == first
    assert family.built == built
    Probes(families, tmp_path / "probes").seconds(settings, LoadOptions("float32", dequantize=True))
    assert family.built > built


def test_a_damaged_file_is_measured_again_and_replaced(tmp_path: Path) -> None:
    probes = Probes({"dense": DenseFamily()}, tmp_path)
    settings = config(vocab_size=300)
    first = probes.seconds(settings, FLOAT32)
    (file,) = tmp_path.iterdir()
    file.write_text('{"decode": "soon"}')
    again = probes.seconds(settings, FLOAT32)
    assert len(again.decode) == len(first.decode)
    assert json.loads(file.read_text())["decode"] == list(again.decode)


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seconds = Probes({"dense": DenseFamily()}, tmp_path / "file" / "probes").seconds(config(vocab_size=300), FLOAT32)
    assert len(seconds.decode) == 6
