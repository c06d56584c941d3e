"""The tiny checkpoints are real: mlx-lm loads them, and the same arguments give the same bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.spi import read_checkpoint
from runtime.testing.models import tiny_llama


def _fingerprint(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False, "dtype": "bfloat16", "files": 3},
        {"sliding": 16},
        {"quantize": 4, "tied": False},
        {"quantize": 8, "dtype": "float16"},
    ],
    ids=str,
)
def test_mlx_lm_loads_it_and_generates_varied_tokens(tmp_path: Path, options: dict[str, object]) -> None:
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    folder = tiny_llama(tmp_path / "m", **options)  # type: ignore[arg-type]  # one parametrized dict of many types
    model, tokenizer = load(str(folder))[:2]
    chat = [{"role": "user", "content": "the dog"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    import mlx.core as mx

    tokens = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=24)]
    assert len(set(tokens)) > 4
    assert tokenizer.eos_token_ids == {2}


def test_the_same_arguments_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here = tiny_llama(tmp_path / "here", files=2, seed=3)
    there = tmp_path / "there"
    script = "import sys, pathlib; from runtime.testing.models import tiny_llama as t; "
    script += "t(pathlib.Path(sys.argv[1]), files=2, seed=3)"
    subprocess.run([sys.executable, "-c", script, str(there)], check=True)
    assert _fingerprint(here) == _fingerprint(there)
    assert _fingerprint(here) != _fingerprint(tiny_llama(tmp_path / "other", files=2, seed=4))


def test_its_headers_tell_its_layers_and_its_size(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_llama(tmp_path, layers=3, files=2, dtype="float16"))
    assert checkpoint.num_layers == 3
    assert checkpoint.nbytes == sum(tensor.size * 2 for tensor in checkpoint.tensors.values())


def test_a_tokenizer_reads_back_any_text(tmp_path: Path) -> None:
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(tiny_llama(tmp_path))
    text = "Grüße, 世界 🙂\n\tthe end"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_too_small_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 259"):
        tiny_llama(tmp_path, vocab=100)
