"""Checkpoint headers: what is sound is read exactly, and whatever lies is refused by name."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointCorrupt, ModelNotFound
from runtime.spi import read_checkpoint
from runtime.spi.checkpoint import read_safetensors_header

WIDTH = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}
CONFIG = {"model_type": "llama", "num_hidden_layers": 2}


def _safetensors(header: Any, body: int) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(body)


def _entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _write(folder: Path, header: Any, body: int = 16) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(_safetensors(header, body))
    return file


def _model(folder: Path, files: dict[str, dict[str, Any]], *, config: Any = CONFIG, body: int = 16) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    for name, header in files.items():
        (folder / name).write_bytes(_safetensors(header, body))
    return folder


SOUND = {"w": _entry("F32", [2, 2], 0, 16)}


@settings(deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(WIDTH)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    ),
    metadata=st.booleans(),
)
def test_what_is_written_is_read_back(tensors: dict[str, tuple[str, list[int]]], metadata: bool) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * WIDTH[dtype]
        header[name] = _entry(dtype, shape, at, at + size)
        at += size
    with tempfile.TemporaryDirectory() as folder:
        file = _write(Path(folder), header, at)
        found = {tensor.name: tensor for tensor in read_safetensors_header(file)}
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in found.items()} == tensors
    assert sum(tensor.nbytes for tensor in found.values()) == at
    base = 8 + len(json.dumps(header).encode())
    assert all(tensor.offset == base + header[name]["data_offsets"][0] for name, tensor in found.items())


@pytest.mark.parametrize(
    "header",
    [
        [],
        "w",
        {"w": None},
        {"w": []},
        {"w": {"dtype": "F32", "shape": [4]}},
        {"w": _entry("F33", [4], 0, 16)},
        {"w": _entry("F32", [4], 0, 12)},
        {"w": _entry("F32", [4], 4, 20)},
        {"w": _entry("F32", [2**62, 2**62], 0, 16)},
        {"w": _entry("F32", [-2, -2], 0, 16)},
        {"w": _entry("F32", [4], -16, 0)},
        {"w": _entry("F32", [4.0], 0, 16)},
        {"w": _entry("F32", [True, 4], 0, 16)},
        {"w": _entry("F32", ["4"], 0, 16)},
        {"w": _entry("F32", [4], "0", "16")},
        {"w": _entry("F32", [4], 0.0, 16.0)},
        {"w": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": "", "data_offsets": [0, 4]}},
        {"w": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
        {"v": _entry("F32", [4], 0, 16), "w": _entry("F32", [2], 8, 16)},
        {"w": _entry("F4", [3], 0, 1)},
        {"w": _entry("F32", [99] * 1_000_000, 0, 16)},
    ],
    ids=lambda header: str(header)[:80],
)
def test_a_header_that_lies_is_corrupt(tmp_path: Path, header: Any) -> None:
    file = _write(tmp_path, header)
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        list(read_safetensors_header(file))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 5000) + b"9" * 5000,
    ],
    ids=["empty", "short", "no header", "huge", "cut", "not JSON", "not UTF-8", "deep", "a long number"],
)
def test_a_file_that_is_no_safetensors_is_corrupt(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        list(read_safetensors_header(file))


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, len(_safetensors(SOUND, 16)) - 1),
    value=st.binary(min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_a_damaged_file_is_read_or_refused_and_never_out_of_bounds(place: int, value: bytes, cut: int) -> None:
    content = bytearray(_safetensors(SOUND, 16))
    content[place : place + len(value)] = value
    content = content[: len(content) - cut]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(content)
        try:
            tensors = list(read_safetensors_header(file))
        except CheckpointCorrupt:
            return  # any other exception fails the test
    assert all(tensor.offset + tensor.nbytes <= len(content) for tensor in tensors)


def test_a_model_in_several_files_is_one_checkpoint(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = {f"model-{number}.safetensors": {name: SOUND["w"]} for number, name in ((1, "a"), (2, "b"), (3, "c"))}
    checkpoint = read_checkpoint(_model(tmp_path, files))
    assert sorted(checkpoint.tensors) == ["a", "b"], "a file that the index does not name is not a part"
    assert checkpoint.nbytes == 32


def test_a_tensor_in_two_files_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="is in both"):
        read_checkpoint(_model(tmp_path, {"model-1.safetensors": SOUND, "model-2.safetensors": SOUND}))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not a safetensors index"),
        ("[]", "is not a safetensors index"),
        ('{"weight_map": []}', "is not a safetensors index"),
        ('{"weight_map": {"w": ["x"]}}', "is not a safetensors index"),
        ('{"weight_map": {"w": 3, "v": "model.safetensors"}}', "is not a safetensors index"),
        ('{"weight_map": {"w": "../../etc/passwd"}}', "not in the model's folder"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "not in the model's folder"),
        ('{"weight_map": {"w": ".."}}', "lacks"),
        ('{"weight_map": {"w": "gone.safetensors"}}', r"lacks gone\.safetensors"),
        ('{"weight_map": {"w": "a\\u0000b"}}', "not in the model's folder"),
        ('{"weight_map": {}}', "names no files"),
    ],
)
def test_an_index_that_lies_is_corrupt(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointCorrupt, match=message):
        read_checkpoint(_model(tmp_path, {"model.safetensors": SOUND}))


def test_a_folder_that_is_none_or_no_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model folder"):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": 3}', "[" * 100_000, "9" * 5000], ids=len)
def test_a_configuration_without_a_model_type_is_corrupt(tmp_path: Path, config: str) -> None:
    _model(tmp_path, {"model.safetensors": SOUND})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointCorrupt, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_a_folder_without_weights_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match=r"no model\*\.safetensors"):
        read_checkpoint(_model(tmp_path, {"adapters.safetensors": SOUND}))


def test_sizes_are_read_from_the_language_models_part(tmp_path: Path) -> None:
    config = {"model_type": "vlm", "text_config": {"num_hidden_layers": 7, "max_position_embeddings": 99}}
    checkpoint = read_checkpoint(_model(tmp_path, {"model.safetensors": SOUND}, config=config))
    assert (checkpoint.num_layers, checkpoint.context, checkpoint.model_type) == (7, 99, "vlm")


@pytest.mark.parametrize("layers", [None, 0, -1, "2", True, 2.0, 10**12])
def test_a_configuration_that_does_not_count_its_layers_is_corrupt(tmp_path: Path, layers: Any) -> None:
    config = {"model_type": "llama", "num_hidden_layers": layers}
    checkpoint = read_checkpoint(_model(tmp_path, {"model.safetensors": SOUND}, config=config))
    with pytest.raises(CheckpointCorrupt, match="how many layers"):
        _ = checkpoint.num_layers


def test_the_digest_tells_configurations_and_tensors_apart_and_not_folders(tmp_path: Path) -> None:
    def digest(name: str, header: dict[str, Any], config: Any = CONFIG) -> str:
        (tmp_path / name).mkdir()
        return read_checkpoint(_model(tmp_path / name, {"model.safetensors": header}, config=config)).digest

    same = digest("a", SOUND)
    assert digest("b", SOUND) == same
    assert digest("c", {"w": _entry("F32", [4], 0, 16)}) != same
    assert digest("d", SOUND, {**CONFIG, "rope_theta": 1}) != same


def test_models_that_differ_only_in_their_weights_or_their_tokenizer_have_different_digests(tmp_path: Path) -> None:
    from runtime.testing.models import tiny_llama

    one, same, trained = (
        tiny_llama(tmp_path / name, seed=seed) for name, seed in (("one", 0), ("same", 0), ("trained", 1))
    )
    digest = read_checkpoint(one).digest
    assert read_checkpoint(same).digest == digest
    assert read_checkpoint(trained).digest != digest
    config = same / "tokenizer_config.json"
    config.write_text(config.read_text().replace("assistant", "helper"))
    template = same / "chat_template.jinja"
    if template.exists():
        template.write_text(template.read_text() + " ")
    else:
        config.write_text(config.read_text() + " ")
    assert read_checkpoint(same).digest != digest
