"""Tiny checkpoints that are real in every way but size: mlx-lm loads them and generates with them.

They hold a configuration, safetensors files, and a byte-level BPE tokenizer with a chat template. The same arguments
always give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Ids 0, 1 and 2. The end of a turn is the model's EOS."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other one",
    "what is the capital of the country, and how many people are there",
    "user system assistant: there is nothing that this model knows of the world",
    "one two three four five six seven eight nine ten",
)
_QUANTIZATION_GROUP = 32


def tiny_llama(
    path: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    context: int = 2048,
    tied: bool = True,
    dtype: str = "float32",
    files: int = 1,
    sliding: int | None = None,
    quantize: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a Llama checkpoint with random weights.

    Args:
        path: the folder to write; made where it is missing.
        layers: number of transformer layers.
        hidden: width of the residual stream, a multiple of ``heads``; the feed-forward is twice as wide.
        heads: attention heads.
        kv_heads: key-value heads; divides ``heads``.
        vocab: rows of the embedding, at least :data:`SMALLEST_VOCABULARY`.
        context: ``max_position_embeddings``.
        tied: whether the output head is the embedding.
        dtype: MLX's name of the type of the weights.
        files: number of safetensors files; more than one come with an index.
        sliding: window of every other layer, which then attends to no more than that; None is full attention.
        quantize: bits of MLX's affine quantization with groups of 32 (``hidden`` must be a multiple); None is none.
        seed: of the weights.

    Returns:
        ``path``.
    """
    if vocab < SMALLEST_VOCABULARY:
        raise ValueError(f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {vocab}")
    if hidden % heads or heads % kv_heads:
        raise ValueError(f"{hidden} is not a multiple of {heads} heads, or those not of {kv_heads} key-value heads")
    path.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "bos_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "eos_token_id": SPECIAL_TOKENS.index(TURN_END),
    }
    if sliding is not None:
        config["layer_types"] = [("full_attention", "sliding_attention")[layer % 2] for layer in range(layers)]
        config["sliding_window"] = sliding
    if quantize is not None:
        config["quantization"] = {"group_size": _QUANTIZATION_GROUP, "bits": quantize, "mode": "affine"}
    weights = _llama_weights(config, dtype, seed)
    if quantize is not None:
        weights = _quantized(weights, quantize)
    _write_weights(path, weights, files)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(path, vocab=vocab, context=context)
    return path


def write_tokenizer(path: Path, *, vocab: int = 320, context: int = 2048) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: all bytes, and merges up to at most ``vocab`` tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _llama_weights(config: dict[str, Any], dtype: str, seed: int) -> dict[str, mx.array]:
    import mlx.core as mx
    import numpy as np

    random = np.random.default_rng(seed)
    kind = getattr(mx, dtype)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def matrix(rows: int, columns: int, gain: float) -> mx.array:
        values = random.standard_normal((rows, columns), dtype=np.float32) * gain
        return mx.array(values).astype(kind)

    def norm() -> mx.array:
        return mx.array(random.uniform(0.8, 1.2, hidden).astype(np.float32)).astype(kind)

    # Layers this loud next to the embedding keep a tied model from repeating the last token for ever.
    loud = 1.5 / hidden**0.5
    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 0.5)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": norm(),
            f"{prefix}.self_attn.q_proj.weight": matrix(wide, hidden, loud),
            f"{prefix}.self_attn.k_proj.weight": matrix(narrow, hidden, loud),
            f"{prefix}.self_attn.v_proj.weight": matrix(narrow, hidden, loud),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, wide, loud),
            f"{prefix}.post_attention_layernorm.weight": norm(),
            f"{prefix}.mlp.gate_proj.weight": matrix(inner, hidden, loud),
            f"{prefix}.mlp.up_proj.weight": matrix(inner, hidden, loud),
            f"{prefix}.mlp.down_proj.weight": matrix(hidden, inner, loud),
        }
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden, loud)
    return weights


def _quantized(weights: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    import mlx.core as mx

    packed: dict[str, mx.array] = {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            packed[name] = weight
            continue
        module = name.removesuffix(".weight")
        kernel, scales, biases = mx.quantize(weight, group_size=_QUANTIZATION_GROUP, bits=bits)
        packed |= {f"{module}.weight": kernel, f"{module}.scales": scales, f"{module}.biases": biases}
    return packed


def _write_weights(path: Path, weights: dict[str, mx.array], files: int) -> None:
    import mlx.core as mx

    if files == 1:
        mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
        return
    names = list(weights)
    share = -(-len(names) // files)
    weight_map: dict[str, str] = {}
    for number in range(files):
        part = names[number * share : (number + 1) * share]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        mx.save_safetensors(str(path / file), {name: weights[name] for name in part}, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(weight.nbytes for weight in weights.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
