"""From GGUF's metadata and tensor names to ``config.json`` and Hugging Face's names.

Only the ``llama`` architecture (Llama, Mistral, SmolLM and others that share it). Everything it means is either
converted or refused: a tensor or a setting that is not understood would give a model that runs and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.reader import GgufHeader, GgufTensor

ROPE_FREQS = "rope_freqs.weight"

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Move(NamedTuple):
    """One tensor of the GGUF file and where it goes."""

    tensor: GgufTensor
    name: str
    """Hugging Face's name."""
    heads: int | None
    """Number of heads whose rows the llama.cpp converter interleaved, for q and k."""


class Architecture(NamedTuple):
    """The model, apart from its weights and its tokenizer."""

    config: dict[str, Any]
    moves: tuple[Move, ...]


def read_architecture(header: GgufHeader, rope_factors: Sequence[float] | None) -> Architecture:
    """Describe the model.

    Args:
        header: what the file says.
        rope_factors: the values of ``rope_freqs.weight`` where the file has it.

    Raises:
        ModelUnsupported: the architecture, or a part of it, is not converted here.
        CheckpointCorrupt: a key or a tensor is missing, or does not have its shape.
    """
    keys = _Keys(header)
    architecture = keys.text("general.architecture")
    if architecture != "llama":
        raise ModelUnsupported(
            f"{header.path} is a model of architecture {architecture!r}; of GGUF files only 'llama' is converted. "
            "Use the model's Hugging Face or MLX folder instead"
        )
    if keys.number("llama.expert_count", 0):
        raise ModelUnsupported(f"{header.path} is a mixture of experts, which is not converted from GGUF")

    layers = keys.number("llama.block_count")
    hidden = keys.number("llama.embedding_length")
    heads = keys.number("llama.attention.head_count")
    kv_heads = keys.number("llama.attention.head_count_kv", heads)
    inner = keys.number("llama.feed_forward_length")
    if min(layers, hidden, heads, kv_heads, inner) <= 0 or heads % kv_heads:
        raise CheckpointCorrupt(f"{header.path} describes no model: {heads} heads, {kv_heads} key-value heads")
    head_dim = keys.number("llama.attention.key_length", hidden // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if keys.number(key, head_dim) != head_dim:
            raise ModelUnsupported(f"{header.path} has {key} = {keys.number(key)} with heads of {head_dim}")
    if head_dim <= 0 or head_dim % 2:
        raise CheckpointCorrupt(f"{header.path} has attention heads of size {head_dim}")
    scale = keys.real("llama.attention.scale", 0.0)
    if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-4):
        raise ModelUnsupported(f"{header.path} scales attention by {scale}, which is not converted")

    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointCorrupt(f"{header.path} has no token_embd.weight; it may be one part of a split file")
    vocabulary = embedding.shape[0]
    base = keys.real("llama.rope.freq_base", 10000.0)
    biased = _biases(header)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.real("llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary,
        "max_position_embeddings": keys.number("llama.context_length"),
        "rope_theta": base,
        "attention_bias": biased["attn"],
        "mlp_bias": biased["ffn"],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": "float16",
    }
    scaling = _rope_scaling(keys, head_dim, base, rope_factors)
    if scaling is not None:
        config["rope_scaling"] = scaling
    wide, narrow = heads * head_dim, kv_heads * head_dim
    shapes: dict[str, tuple[int, int]] = {
        "attn_q": (wide, hidden),
        "attn_k": (narrow, hidden),
        "attn_v": (narrow, hidden),
        "attn_output": (hidden, wide),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    wanted = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        wanted["output.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        for part in _LAYER:
            if part in shapes:
                wanted[f"blk.{layer}.{part}.weight"] = shapes[part]
                if biased[part.split("_", 1)[0]]:
                    wanted[f"blk.{layer}.{part}.bias"] = shapes[part][:1]
            else:
                wanted[f"blk.{layer}.{part}.weight"] = (hidden,)
        if len(wanted) > len(header.tensors):
            break  # a claim of a billion layers must not be spelt out; the check below names what is missing
    _check_shapes(header, wanted)
    grouped = {"attn_q": heads, "attn_k": kv_heads}
    moves = []
    for name in wanted:
        part = name.split(".")[2] if name.startswith("blk.") else ""
        moves.append(Move(header.tensors[name], hugging_face_name(name), grouped.get(part)))
    return Architecture(config, tuple(moves))


def hugging_face_name(name: str) -> str:
    """Translate ``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``."""
    if name in _TOP:
        return _TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}"


def llama3_factors(head_dim: int, base: float, scaling: dict[str, Any]) -> list[float]:
    """Compute the divisors of the rotary frequencies that Llama 3.1 introduced, one for each pair of dimensions.

    The formula is that of ``_compute_llama3_parameters`` in transformers.
    """
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = scaling["original_max_position_embeddings"]
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / head_dim)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(float(factor))
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _rope_scaling(
    keys: _Keys, head_dim: int, base: float, rope_factors: Sequence[float] | None
) -> dict[str, Any] | None:
    path = keys.header.path
    kind = keys.text("llama.rope.scaling.type", "none")
    factor = keys.real("llama.rope.scaling.factor", 0.0) or keys.real("llama.rope.scale_linear", 0.0)
    if rope_factors is not None:
        if kind != "none":
            raise ModelUnsupported(f"{path} has both rope_freqs and rope scaling {kind!r}, which is not converted")
        return _from_factors(path, head_dim, base, rope_factors)
    if kind == "none" and factor in (0.0, 1.0):
        return None
    if kind in ("none", "linear"):
        return {"type": "linear", "rope_type": "linear", "factor": factor}
    if kind == "yarn" and keys.real("llama.rope.scaling.attn_factor", 1.0) == 1.0:
        return {
            "type": "yarn",
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.number("llama.rope.scaling.original_context_length"),
        }
    raise ModelUnsupported(f"{path} scales its rotary embedding by {kind!r}, which is not converted from GGUF")


def _from_factors(path: Path, head_dim: int, base: float, factors: Sequence[float]) -> dict[str, Any] | None:
    """Find the settings that give these factors; all published Llama 3 models share all but the first."""
    if all(factor == 1.0 for factor in factors):
        return None
    scaling = {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": max(factors, default=1.0),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_factors(head_dim, base, scaling)
    if len(expected) != len(factors) or not all(map(_near, expected, factors)):
        raise ModelUnsupported(f"{path} has a rope_freqs.weight that is not Llama 3's, and is not converted")
    return scaling


def _near(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-3)


def _biases(header: GgufHeader) -> dict[str, bool]:
    """Whether attention and feed-forward have biases; the shape check sees to it that it is all of them or none."""
    names = header.tensors.keys()
    return {
        "attn": any(f"blk.0.attn_{part}.bias" in names for part in ("q", "k", "v", "output")),
        "ffn": any(f"blk.0.ffn_{part}.bias" in names for part in ("gate", "up", "down")),
    }


def _check_shapes(header: GgufHeader, wanted: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(wanted.keys() - header.tensors.keys())
    if missing:
        raise CheckpointCorrupt(
            f"{header.path} lacks {len(missing)} tensors that its architecture needs, {missing[0]} among them; "
            "it may be cut short, or one part of a split file"
        )
    unknown = sorted(header.tensors.keys() - wanted.keys() - {ROPE_FREQS})
    if unknown:
        raise ModelUnsupported(
            f"{header.path} has {len(unknown)} tensors that a llama model does not have, such as {unknown[0]}; "
            "converting it would drop a part of the model"
        )
    for name, shape in wanted.items():
        found = header.tensors[name].shape
        if found != shape:
            raise CheckpointCorrupt(f"tensor {name} of {header.path} has shape {found}, and should have {shape}")


class _Keys:
    """Typed access to the metadata."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header

    def text(self, key: str, default: str | None = None) -> str:
        value = self.header.metadata.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        value = self.header.metadata.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # one value a layer, where all layers agree
        if isinstance(value, list):
            raise ModelUnsupported(f"{self.header.path} gives each layer its own {key}, which is not converted")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.header.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        # The file holds float32: 9.999999747378752e-06 was written as 1e-05.
        return float(f"{value:.7g}")

    def _wrong(self, key: str, value: object, form: str) -> CheckpointCorrupt:
        found = "is missing" if value is None else f"is {str(value)[:40]!r}"
        return CheckpointCorrupt(f"metadata {key} of {self.header.path} {found}, and should be {form}")
