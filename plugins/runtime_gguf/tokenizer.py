"""A Hugging Face tokenizer, rebuilt from GGUF's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.pretokenizers import SPLITS, Split
from runtime_gguf.reader import GgufHeader
from runtime_gguf.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def write_tokenizer(header: GgufHeader, target: Path, rows: int) -> dict[str, Any]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``target``.

    Args:
        header: what the file says.
        target: the folder.
        rows: size of the embedding, which no token's id may exceed.

    Returns:
        The special tokens' ids, under the names that ``config.json`` uses; all that end an answer are there.

    Raises:
        ModelUnsupported: the kind of tokenizer or of pre-tokenizer is not known here.
        CheckpointCorrupt: the lists are missing or contradict each other.
    """
    metadata = header.metadata
    vocabulary = read_vocabulary(header, rows)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        name = metadata.get("tokenizer.ggml.pre", "default")
        split = SPLITS.get(name) if isinstance(name, str) else None
        if split is None:
            raise ModelUnsupported(
                f"{header.path} uses the pre-tokenizer {str(name)[:40]!r}; known are {', '.join(sorted(SPLITS))}. "
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
    special: dict[str, Any] = {
        f"{role}_token_id": vocabulary.ids[role] for role in ("bos", "eos", "pad") if role in vocabulary.ids
    }
    ends = vocabulary.ends
    return special | {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else special


def _byte_level(vocabulary: Vocabulary, split: Split) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

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
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary, prefix: bool) -> Tokenizer:
    """Build SentencePiece's BPE: its merges are all pairs that make a token, the best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise CheckpointCorrupt(f"{vocabulary.path} has a SentencePiece vocabulary without scores")
    # Bytes and control tokens take no part in merging.
    index = {token: position for position, token in enumerate(vocabulary.tokens)}
    normal = {
        token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (NORMAL, USER_DEFINED)
    }
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


def _add_special(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    from tokenizers import AddedToken

    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    special = [token for token, kind in kinds if kind in (UNKNOWN, CONTROL)]
    plain = [token for token, kind in kinds if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])


def _surround(tokenizer: Tokenizer, vocabulary: Vocabulary, *, bos: bool, eos: bool) -> None:
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


def _config(header: GgufHeader, vocabulary: Vocabulary, *, bos: bool, eos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; a model's own class may rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bos,
        "add_eos_token": eos,
    }
    for role in ("bos", "eos", "unk", "pad"):
        if role in vocabulary.ids:
            config[f"{role}_token"] = vocabulary.tokens[vocabulary.ids[role]]
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    context = header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    return config
