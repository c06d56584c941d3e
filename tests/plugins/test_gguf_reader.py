"""The GGUF reader believes nothing: whatever a file claims, it answers with a header or with a clear refusal."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.testing.gguf_files import write_llama
from runtime_gguf.reader import read_header
from runtime_gguf.source import GgufSource

with tempfile.TemporaryDirectory() as _folder:
    SOUND = write_llama(Path(_folder) / "m.gguf", kind="Q8_0").read_bytes()
HEADER = SOUND.index(b"token_embd.weight")
"""Where the tensors' descriptions start, about."""


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    return path


def _header(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    header = read_header(_file(tmp_path, SOUND))
    assert header.metadata["general.architecture"] == "llama"
    assert header.tensors["blk.0.ffn_down.weight"].shape == (64, 96)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GGU", "3 are left"),
        (b"\x80\x02}q\x00" * 10, "does not start with the letters GGUF"),
        (_header(0, 2**60), "claims 1152921504606846976 metadata pairs"),
        (_header(2**60, 0), "claims 1152921504606846976 tensors"),
        (_header(0, 1) + struct.pack("<Q", 2**63) + b"x" * 64, "should take"),
        (_header(0, 1) + _text("k") + struct.pack("<IIQ", 9, 4, 2**62) + b"x" * 64, "'k' claims"),
        (_header(0, 1) + _text("k") + struct.pack("<IIQ", 9, 9, 1) + b"x" * 64, "unknown type 9"),
        (_header(0, 1) + _text("k") + struct.pack("<I", 99) + b"x" * 64, "unknown type 99"),
        (_header(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + b"x" * 64, "not UTF-8"),
        (_header(0, 2) + (_text("k") + struct.pack("<II", 4, 1)) * 2 + b"x" * 64, "appears twice"),
        (_header(0, 1) + _text("general.alignment") + struct.pack("<II", 4, 3), "not a power of two"),
        (_header(1, 0) + _tensor("w", (2**40, 2**40), 0, 0) + b"x" * 64, "cut short"),
        (_header(1, 0) + _tensor("w", (32,), 0, 2**62) + b"x" * 64, "cut short"),
        (_header(1, 0) + _tensor("w", (32,), 0, 7) + b"x" * 512, "cut short"),
        (_header(1, 0) + _tensor("w", (0, 32), 0, 0) + b"x" * 64, "empty shape"),
        (_header(1, 0) + _tensor("w", (33,), 8, 0) + b"x" * 64, "multiple of its block"),
        (_header(1, 0) + _text("w") + struct.pack("<I", 2**31) + b"x" * 64, "dimensions"),
        (_header(2, 0) + _tensor("w", (8,), 0, 0) * 2 + b"x" * 512, "described twice"),
        (_header(2, 0) + _tensor("v", (64,), 0, 0) + _tensor("w", (8,), 0, 32) + b"x" * 512, "overlap"),
    ],
    ids=range(20),
)
def test_a_lie_is_found_out_and_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=message) as refusal:
        read_header(_file(tmp_path, content))
    assert "hostile.gguf" in refusal.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (_header(1, 0) + _tensor("w", (8,), 7777, 0) + b"x" * 64, "ggml type 7777"),
    ],
    ids=["version", "endian", "type"],
)
def test_what_is_sound_but_unknown_is_called_unsupported(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelUnsupported, match=message):
        read_header(_file(tmp_path, content))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(SOUND) - 1))
def test_a_file_cut_anywhere_is_corrupt(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(CheckpointCorrupt):
        read_header(_file(Path(folder), SOUND[:cut]))


@settings(max_examples=150, deadline=None)
@given(
    places=st.lists(st.integers(0, HEADER + 1000), min_size=1, max_size=6),
    values=st.lists(st.binary(min_size=1, max_size=8), min_size=6, max_size=6),
)
def test_a_file_with_damaged_bytes_converts_or_is_refused(places: list[int], values: list[bytes]) -> None:
    content = bytearray(SOUND)
    for place, value in zip(places, values, strict=False):
        content[place : place + len(value)] = value
    with tempfile.TemporaryDirectory() as folder:
        file = _file(Path(folder), bytes(content))
        try:
            converted = GgufSource(Path(folder) / "cache").fetch(str(file), lambda progress: None)
        except (CheckpointCorrupt, ModelUnsupported):
            return  # any other exception fails the test
        assert (converted / "model.safetensors").is_file()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_noise_behind_the_magic_number_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = _file(Path(folder), b"GGUF\x03\x00\x00\x00" + content)
        try:
            header = read_header(file)
        except (CheckpointCorrupt, ModelUnsupported):
            return  # any other exception fails the test
        assert len(header.tensors) * 24 <= len(content)
