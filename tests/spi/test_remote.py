"""A model that is read from afar: its headers first, then a slice, which loads as the whole model's does."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import CheckpointCorrupt, ModelError
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, TensorInfo, read_checkpoint
from runtime.spi.digest import SAMPLED_TENSORS, sampled
from runtime.spi.partial import PartialFolder
from runtime.spi.ranges import size
from runtime.spi.remote import RemoteFiles
from runtime.spi.slices import slice_tensors
from runtime.testing.models import tiny_llama

LAYERS = 8


class Afar:
    """Reads the files of a folder, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self.refused = False
        self._lock = threading.Lock()

    def __call__(self, file: str, start: int, stop: int) -> bytes | None:
        if self.refused:
            raise ModelError("the line is cut")
        with self._lock:
            self.bytes += stop - start
        return (self.folder / file).read_bytes()[start:stop]


@pytest.fixture(scope="module", params=[1, 3], ids=["one file", "three files"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), layers=LAYERS, hidden=128, files=request.param, tied=False)


@pytest.fixture
def afar(model: Path) -> Afar:
    return Afar(model)


def opened(afar: Afar, parts: Path, lender: Any = None) -> RemoteFiles:
    """Open the model with what is in ``parts``; configuration and tokenizer are taken from where they are."""
    sizes = {file.name: file.stat().st_size for file in afar.folder.glob("*.safetensors")}
    return RemoteFiles("tiny", afar.folder, {}, PartialFolder(parts, sizes), lender or afar, lambda progress: None)


def held(files: RemoteFiles) -> int:
    """Bytes of the weights that are here."""
    return sum(size(holding.ranges) for name, holding in files.holdings().items() if name.endswith(".safetensors"))


def test_a_model_is_known_from_its_headers_alone(afar: Afar, model: Path, tmp_path: Path) -> None:
    whole, files = read_checkpoint(model), opened(afar, tmp_path)
    found = files.checkpoint
    assert found.digest == whole.digest
    assert found.tensors.keys() == whole.tensors.keys()
    assert found.num_layers == LAYERS
    assert all(found.tensors[name].nbytes <= 1024 for name in found.tensors.keys() - found.absent), (
        "neighbours came along"
    )
    assert afar.bytes < 0.1 * whole.nbytes


@pytest.mark.parametrize("span", [LayerSpan(0, 3, LAYERS), LayerSpan(3, 5, LAYERS), LayerSpan(5, 8, LAYERS)], ids=str)
def test_a_slice_costs_little_more_than_its_own_bytes(afar: Afar, tmp_path: Path, span: LayerSpan) -> None:
    files = opened(afar, tmp_path)
    names = slice_tensors(files.checkpoint, span)
    told: list[tuple[int, int | None]] = []
    found = files.fetch(names, lambda progress: told.append((progress.done, progress.total)))
    assert not names & found.absent
    assert afar.bytes <= 1.05 * sum(found.tensors[name].nbytes for name in names) + 32 * 1024, "with all headers"
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert 0 <= afar.bytes - held(files) < 32 * 1024, "and hardly anything twice"


def test_what_was_fetched_needs_no_network_again(afar: Afar, tmp_path: Path) -> None:
    span = LayerSpan(0, 4, LAYERS)
    names = slice_tensors(opened(afar, tmp_path).checkpoint, span)
    opened(afar, tmp_path).fetch(names, lambda progress: None)
    afar.refused = True
    again = opened(afar, tmp_path)
    assert not again.fetch(names, lambda progress: None).absent & names
    with pytest.raises(ModelError, match="the line is cut"):
        again.fetch(again.checkpoint.tensors, lambda progress: None)


def test_a_lender_is_asked_first_and_what_it_lacks_comes_from_afar(afar: Afar, tmp_path: Path) -> None:
    files = opened(afar, tmp_path)
    nearer = Afar(afar.folder)
    first = threading.Lock()

    def lender(file: str, start: int, stop: int) -> bytes | None:
        return nearer(file, start, stop) if first.acquire(blocking=False) else None

    names = slice_tensors(files.checkpoint, LayerSpan(2, 8, LAYERS))
    assert not names & files.fetch(names, lambda progress: None, lender).absent
    assert nearer.bytes > 0
    assert 0 <= afar.bytes + nearer.bytes - held(files) < 32 * 1024


def test_a_header_that_lies_is_refused(model: Path, tmp_path: Path) -> None:
    class Liar(Afar):
        def __call__(self, file: str, start: int, stop: int) -> bytes | None:
            data = super().__call__(file, start, stop) or b""
            return struct.pack("<Q", 1 << 40) + data[8:] if start == 0 else data

    with pytest.raises(CheckpointCorrupt, match="not a safetensors file"):
        opened(Liar(model), tmp_path)


def load(checkpoint: Checkpoint, span: LayerSpan) -> dict[str, bytes]:
    """Load a slice as a stage does, and return its parameters' bytes."""
    from mlx.utils import tree_flatten

    from runtime.inference.loading import load_shard
    from runtime_dense.family import DenseFamily

    shard = load_shard({"dense": DenseFamily()}, checkpoint, span, LoadOptions("float32", False), lambda *_: None)
    return {name: bytes(memoryview(array)) for name, array in tree_flatten(shard.model.parameters())}


@pytest.mark.parametrize("span", [LayerSpan(0, 3, LAYERS), LayerSpan(3, 8, LAYERS)], ids=str)
def test_a_slice_that_was_fetched_loads_bit_for_bit(afar: Afar, model: Path, tmp_path: Path, span: LayerSpan) -> None:
    files = opened(afar, tmp_path)
    fetched = files.fetch(slice_tensors(files.checkpoint, span), lambda progress: None)
    assert fetched.absent
    assert load(fetched, span) == load(read_checkpoint(model), span)


@pytest.mark.parametrize(
    ("span", "left_out", "named"),
    [
        (LayerSpan(0, 3, LAYERS), "model.layers.2.mlp.up_proj.weight", r"layers\.2\.mlp\.up_proj"),
        (LayerSpan(0, 3, LAYERS), "model.embed_tokens.weight", "embed_tokens"),
        (LayerSpan(5, 8, LAYERS), "lm_head.weight", "lm_head"),
    ],
)
def test_a_tensor_that_is_not_here_is_missing_and_never_zeros(
    afar: Afar, tmp_path: Path, span: LayerSpan, left_out: str, named: str
) -> None:
    files = opened(afar, tmp_path)
    fetched = files.fetch(slice_tensors(files.checkpoint, span) - {left_out}, lambda progress: None)
    with pytest.raises(CheckpointCorrupt, match=named):
        load(fetched, span)


def test_samples_are_few_and_of_every_kind(tmp_path: Path) -> None:
    layers = [f"model.layers.{layer}" for layer in range(60)]
    names = [f"{layer}.experts.{expert}.w{part}" for layer in layers for expert in range(4) for part in range(3)]
    names += ["model.norm.weight", *(f"{layer}.gate" for layer in layers)]
    tensors = [TensorInfo(name, "F32", (9,), tmp_path / "w", 36 * number, 36) for number, name in enumerate(names)]
    chosen = [tensor.name for tensor in sampled(tensors)]
    assert len(chosen) == len(set(chosen)) == SAMPLED_TENSORS
    assert "model.norm.weight" in chosen
    assert sum(name.endswith("gate") for name in chosen) == 60
    assert chosen == [tensor.name for tensor in sampled(tensors[::-1])], "whatever order they come in"
