"""A Hugging Face tokenizer, rebuilt from GGUF's metadata.

GGUF names a tokenizer's kind (``tokenizer.ggml.model``) and, for byte-level BPE, its pre-tokenizer
(``tokenizer.ggml.pre``), but spells out neither; the regular expressions here are the published models' own. A name
that is not known is refused: a tokenizer that splits differently gives a model that reads differently, silently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.reader import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types that stand apart from the merges. 1 is normal, 5 unused, 6 a byte."""

# The published expressions; the two differ in how many digits stay together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"


class _Split(NamedTuple):
    """How a byte-level BPE cuts text before it merges."""

    regex: str | None
    """None is GPT-2's own, which the tokenizers library has built in."""
    digits: bool = False
    """Every digit on its own."""
    nfc: bool = False
    ignore_merges: bool = False
    """A piece that is a token as a whole is taken whole."""
    bos: bool = False
    """Whether text starts with BOS where the file does not say."""


_SPLITS = {
    "default": _Split(None),
    "gpt-2": _Split(None),
    "smollm": _Split(None, digits=True),
    "llama-bpe": _Split(_LLAMA3, ignore_merges=True, bos=True),
    "qwen2": _Split(_QWEN2, nfc=True),
}


class _Vocabulary(NamedTuple):
    """The lists and ids of the metadata, checked against each other."""

    path: Path
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    """``bos``, ``eos``, ``unk`` and ``pad``, where the file has them."""


def write_tokenizer(header: GgufHeader, target: Path, rows: int) -> dict[str, Any]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``target``.

    Args:
        header: what the file says.
        target: the folder.
        rows: size of the embedding, which no token's id may exceed.

    Returns:
        The special tokens' ids, under the names that ``config.json`` uses.

    Raises:
        ModelUnsupported: the kind of tokenizer or of pre-tokenizer is not known here.
        CheckpointCorrupt: the lists are missing or contradict each other.
    """
    metadata = header.metadata
    vocabulary = _read(header, rows)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        name = metadata.get("tokenizer.ggml.pre", "default")
        split = _SPLITS.get(name) if isinstance(name, str) else None
        if split is None:
            raise ModelUnsupported(
                f"{header.path} uses the pre-tokenizer {str(name)[:40]!r}; known are {', '.join(_SPLITS)}. "
                "Use the model's Hugging Face or MLX folder instead"
            )
        tokenizer, bos = _byte_level(vocabulary, split), split.bos
    elif kind == "llama":
        if "tokenizer.ggml.precompiled_charsmap" in metadata:
            raise ModelUnsupported(f"{header.path} normalizes text by a precompiled_charsmap, which is not converted")
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        tokenizer, bos = _sentencepiece(vocabulary, prefix), True
    else:
        raise ModelUnsupported(
            f"{header.path} has a tokenizer of kind {str(kind)[:40]!r}; 'gpt2' and 'llama' are converted. "
            "Use the model's Hugging Face or MLX folder instead"
        )
    _add_special(tokenizer, vocabulary)
    bos = bool(metadata.get("tokenizer.ggml.add_bos_token", bos))
    eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    _surround(tokenizer, vocabulary, bos=bos, eos=eos)
    tokenizer.save(str(target / "tokenizer.json"))
    config = _config(header, vocabulary, bos=bos, eos=eos)
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return {f"{role}_token_id": vocabulary.ids[role] for role in ("bos", "eos", "pad") if role in vocabulary.ids}


def _read(header: GgufHeader, rows: int) -> _Vocabulary:
    def listed(key: str, form: type) -> list[Any]:
        value = header.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(value, list) or not all(isinstance(item, form) for item in value):
            raise CheckpointCorrupt(f"metadata tokenizer.ggml.{key} of {header.path} is not a list of {form.__name__}")
        return value

    tokens = listed("tokens", str)
    if not 0 < len(tokens) <= rows or len(set(tokens)) != len(tokens):
        raise CheckpointCorrupt(
            f"{header.path} lists {len(tokens)} tokens, {len(set(tokens))} of them distinct, for an embedding of {rows}"
        )
    types = listed("token_type", int) or [1] * len(tokens)
    scores = listed("scores", float)
    if len(types) != len(tokens) or len(scores) not in (0, len(tokens)):
        raise CheckpointCorrupt(
            f"{header.path} lists {len(tokens)} tokens, {len(types)} types and {len(scores)} scores for them"
        )
    ids: dict[str, int] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        value = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int) and value == 0xFFFFFFFF:
            continue  # llama.cpp writes -1 for "none"
        if value is not None and not (isinstance(value, int) and 0 <= value < len(tokens)):
            raise CheckpointCorrupt(
                f"the {key} token of {header.path} is {value!r}, and there are {len(tokens)} tokens"
            )
        if value is not None:
            ids[role] = value
    return _Vocabulary(header.path, tokens, types, listed("merges", str), scores, ids)


def _byte_level(vocabulary: _Vocabulary, split: _Split) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    index = {token: position for position, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in vocabulary.merges:
        left, space, right = merge.partition(" ")
        if not space or left not in index or right not in index or left + right not in index:
            raise CheckpointCorrupt(f"{vocabulary.path} merges {merge[:40]!r}, which is not made of its tokens")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=index, merges=merges, ignore_merges=split.ignore_merges))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(split.regex), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.regex is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary, prefix: bool) -> Tokenizer:
    """Build SentencePiece's BPE: its merges are all pairs that make a token, the best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise CheckpointCorrupt(f"{vocabulary.path} has a SentencePiece vocabulary without scores")
    # Bytes and control tokens take no part in merging.
    index = {token: position for position, token in enumerate(vocabulary.tokens)}
    normal = {token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (1, 4)}
    found: list[tuple[float, int, int, str, str]] = []
    for token in normal:
        score = vocabulary.scores[index[token]]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                found.append((-score, index[left], index[right], left, right))
    found.sort()
    unknown = vocabulary.ids.get("unk")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=index,
            merges=[(left, right) for _, _, _, left, right in found],
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(content=" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_special(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    from tokenizers import AddedToken

    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    special = [token for token, kind in kinds if kind in (UNKNOWN, CONTROL)]
    plain = [token for token, kind in kinds if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])


def _surround(tokenizer: Tokenizer, vocabulary: _Vocabulary, *, bos: bool, eos: bool) -> None:
    """Put BOS before and EOS after a text, where the model was trained so."""
    from tokenizers import processors

    before = [vocabulary.ids["bos"]] if bos and "bos" in vocabulary.ids else []
    after = [vocabulary.ids["eos"]] if eos and "eos" in vocabulary.ids else []
    if not before and not after:
        return
    names = {vocabulary.tokens[position]: position for position in (*before, *after)}
    first = [vocabulary.tokens[position] for position in before]
    last = [vocabulary.tokens[position] for position in after]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)],
        special_tokens=list(names.items()),
    )


def _config(header: GgufHeader, vocabulary: _Vocabulary, *, bos: bool, eos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; a model's own class may rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bos,
        "add_eos_token": eos,
    }
    for role, position in vocabulary.ids.items():
        config[f"{role}_token"] = vocabulary.tokens[position]
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    context = header.metadata.get("llama.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    return config
