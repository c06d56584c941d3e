"""What is told of a model comes from its files, whatever state they are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.inference.card import describe
from runtime.inference.options import candidate_contexts, candidate_options
from runtime.spi import Checkpoint, LoadOptions, ModelCard, ModelListing, read_checkpoint
from runtime.testing.models import CHAT_TEMPLATE, tiny_llama


def card(folder: Path, **config: Any) -> ModelCard:
    checkpoint = read_checkpoint(folder)
    checkpoint.config.update(config)
    return describe(ModelListing("tiny", "folder", 0, 7.0, folder), checkpoint)


def test_a_model_is_described(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", tied=False, dtype="bfloat16")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    found = card(folder)
    assert (found.architecture, found.layers, found.context, found.hidden_size) == ("llama", 4, 2048, 64)
    assert (found.quantization, found.license, found.chat_template) == ("BF16", "apache-2.0", CHAT_TEMPLATE)
    assert found.parameters * 2 == found.bytes == read_checkpoint(folder).nbytes


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_packed_weights_count_as_what_they_unpack_to(tmp_path: Path, bits: int) -> None:
    packed = card(tiny_llama(tmp_path / "packed", quantize=bits))
    assert packed.parameters == card(tiny_llama(tmp_path / "plain")).parameters
    assert packed.quantization == f"{bits}bit/32"


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("# Tiny\n\nlicense: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        ("---\nlicense:\n  - mit\n---\n", None),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
    ],
)
def test_the_licence_is_the_front_matters(tmp_path: Path, readme: str, expected: str | None) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "README.md").write_bytes(readme.encode())
    assert card(folder).license == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": b"of its own"}, "of its own"),
        ({"chat_template.jinja": b"\xff"}, "\ufffd"),
        ({"tokenizer_config.json": b"{"}, None),
        ({"tokenizer_config.json": b"[" * 100_000}, None),
        ({"tokenizer_config.json": b"[]"}, None),
        (
            {"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": "t"}]}).encode()},
            "t",
        ),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "tools", "template": "t"}]}).encode()}, None),
    ],
)
def test_the_chat_template_is_found_where_there_is_one(
    tmp_path: Path, files: dict[str, bytes], expected: str | None
) -> None:
    folder = tiny_llama(tmp_path / "model")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert card(folder).chat_template == expected


@pytest.mark.parametrize("size", ["wide", -1, None, True, [64]])
def test_a_configuration_without_sense_is_described_all_the_same(tmp_path: Path, size: Any) -> None:
    folder = tiny_llama(tmp_path / "model", quantize=4)
    found = card(folder, hidden_size=size, quantization={"bits": size, "group_size": size})
    assert found.hidden_size == 0
    assert found.parameters > 0


def options(checkpoint: Checkpoint, backend: str, **settings: str) -> list[tuple[str, bool]]:
    fixed = {"dtype": "auto", "dequantize": "auto", **settings}
    found = candidate_options(checkpoint, backend=backend, dtype=fixed["dtype"], dequantize=fixed["dequantize"])
    assert all(isinstance(option, LoadOptions) for option in found)
    return [(option.dtype, option.dequantize) for option in found]


def test_a_cpu_computes_in_float32_and_expands_packed_weights_if_they_fit(tmp_path: Path) -> None:
    packed = read_checkpoint(tiny_llama(tmp_path / "packed", quantize=4, dtype="bfloat16"))
    plain = read_checkpoint(tiny_llama(tmp_path / "plain", dtype="bfloat16"))
    assert options(packed, "cpu") == [("float32", True), ("float32", False)]
    assert options(packed, "cpu", dequantize="false") == [("float32", False)]
    assert options(packed, "cpu", dequantize="true", dtype="float16") == [("float16", True)]
    assert options(plain, "cpu") == options(plain, "cpu", dequantize="true") == [("float32", False)]


@pytest.mark.parametrize(("stored", "computed"), [("float16", "float16"), ("bfloat16", "bfloat16")])
def test_a_gpu_keeps_the_models_own_type_and_its_packed_weights(tmp_path: Path, stored: str, computed: str) -> None:
    for index, bits in enumerate((None, 4)):
        checkpoint = read_checkpoint(tiny_llama(tmp_path / str(index), dtype=stored, quantize=bits))
        assert options(checkpoint, "metal") == options(checkpoint, "cuda") == [(computed, False)]


def test_a_gpu_computes_in_the_type_that_the_configuration_names(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path / "model", dtype="float16", quantize=4))
    checkpoint.config["torch_dtype"] = "bfloat16"
    assert options(checkpoint, "metal") == [("bfloat16", False)]
    checkpoint.config.update(torch_dtype=["nonsense"], dtype=None)
    assert options(checkpoint, "metal") == [("float16", False)]


def test_a_gpu_halves_float32(tmp_path: Path) -> None:
    assert options(read_checkpoint(tiny_llama(tmp_path / "model")), "metal") == [("bfloat16", False)]


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        (8192, None, (8192, 4096, 2048)),
        (2048, None, (2048,)),
        (100, None, (100,)),
        (8192, 3000, (3000,)),
        (2048, 9999, (2048,)),
    ],
)
def test_contexts_are_tried_from_the_models_own_downwards(
    tmp_path: Path, own: int, wanted: int | None, expected: tuple[int, ...]
) -> None:
    assert candidate_contexts(read_checkpoint(tiny_llama(tmp_path / "model", context=own)), wanted) == expected
