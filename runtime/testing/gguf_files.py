"""Small GGUF files of a llama, written with the gguf package's own writer.

Imported by itself where it is wanted: it brings numpy and gguf with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 64, 4, 2, 96, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "i n", "Ġ a", "Ġ in")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES))
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def llama_cpp_order(matrix: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as llama.cpp's converter does: in each head from (half, pair) to (pair, half)."""
    return matrix.reshape(heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def bpe_metadata() -> dict[str, Any]:
    """Return the metadata of a small byte-level BPE with the tokens :data:`TOKENS`."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def matrices(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights by GGUF's names, with q and k in the order of Hugging Face."""
    random = np.random.default_rng(seed)
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HEADS * head, HIDDEN),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * head, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HEADS * head),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_llama(
    path: Path,
    *,
    kind: str = "F32",
    more: dict[str, NDArray[np.float32]] | None = None,
    keys: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    spm: tuple[list[str], list[float], list[int]] | None = None,
) -> Path:
    """Write a llama of two layers.

    Args:
        path: the file.
        kind: ggml type of the matrices; vectors are F32.
        more: tensors to add or replace.
        keys: metadata to add or replace; None leaves a key out.
        without: tensors to leave out.
        spm: tokens, scores and types of a SentencePiece vocabulary, in place of byte-level BPE.
    """
    encoding = GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    metadata: dict[str, Any] = {
        "llama.block_count": LAYERS,
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **bpe_metadata(),
    }
    tensors = {**matrices(), **(more or {})}
    if spm is not None:
        metadata |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": spm[0],
            "tokenizer.ggml.scores": spm[1],
            "tokenizer.ggml.token_type": spm[2],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 0,
        }
        tensors["token_embd.weight"] = np.zeros((len(spm[0]), HIDDEN), dtype=np.float32)
    for key, value in {**metadata, **(keys or {})}.items():
        add_value(writer, key, value)
    for name, tensor in tensors.items():
        if name in without:
            continue
        stored = tensor
        if ".attn_q." in name or ".attn_k." in name:
            stored = llama_cpp_order(tensor, HEADS if ".attn_q." in name else KV_HEADS)
        if stored.ndim == 1:
            writer.add_tensor(name, stored)
        else:
            writer.add_tensor(name, gguf.quants.quantize(stored, encoding), raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value to the metadata as the type that converters give it; None adds nothing."""
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case str():
            writer.add_string(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, value)
