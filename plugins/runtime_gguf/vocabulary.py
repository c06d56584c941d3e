"""The lists and ids of a tokenizer in GGUF's metadata, checked against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime_gguf.reader import GgufHeader

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of tokens; 5 is unused, 6 a byte."""

MAX_TOKEN, MAX_CHARACTERS = 1 << 10, 1 << 24
"""Length of a token, and of all together; far beyond any vocabulary. Merges are found in time that grows with both."""

_NONE = 0xFFFFFFFF
"""How llama.cpp writes that there is no such token: -1."""

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}
_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|END_OF_TURN_TOKEN|>",
        "<EOT>",
        "</s>",
        "<eos>",
    }
)
"""Control tokens that end an answer whatever the metadata says, as llama.cpp takes them: the metadata has room for one
end of text only, and the chat formats of many models end with another token."""


class Vocabulary(NamedTuple):
    """A tokenizer's tokens."""

    path: Path
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    """``bos``, ``eos``, ``unk``, ``pad``, ``eot`` and ``eom``, where the file has them."""

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer, the file's own first."""
        named = [self.ids[role] for role in ("eos", "eot", "eom") if role in self.ids]
        # In gpt-oss's format <|end|> ends a message, after which the answer goes on.
        known = _ENDS - {"<|end|>"} if {"<|return|>", "<|call|>"} <= set(self.tokens) else _ENDS
        kinds = enumerate(zip(self.tokens, self.types, strict=True))
        found = [place for place, (token, kind) in kinds if token in known and kind in (CONTROL, USER_DEFINED)]
        return list(dict.fromkeys([*named, *found]))


def read_vocabulary(header: GgufHeader, rows: int) -> Vocabulary:
    """Read and check the tokenizer's lists.

    Args:
        header: what the file says.
        rows: size of the embedding, which no token's id may exceed.

    Raises:
        CheckpointCorrupt: the lists are missing or contradict each other.
    """

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
    if max(map(len, tokens)) > MAX_TOKEN or sum(map(len, tokens)) > MAX_CHARACTERS:
        raise CheckpointCorrupt(f"the tokens of {header.path} are longer than those of any vocabulary")
    types = listed("token_type", int) or [NORMAL] * len(tokens)
    scores = listed("scores", float)
    if len(types) != len(tokens) or len(scores) not in (0, len(tokens)):
        raise CheckpointCorrupt(
            f"{header.path} lists {len(tokens)} tokens, {len(types)} types and {len(scores)} scores for them"
        )
    ids: dict[str, int] = {}
    for role, key in _ROLES.items():
        value = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None or (isinstance(value, int) and value in (_NONE, -1)):
            continue
        if not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(tokens)):
            raise CheckpointCorrupt(
                f"the {key} token of {header.path} is {value!r}, and there are {len(tokens)} tokens"
            )
        ids[role] = value
    return Vocabulary(header.path, tokens, types, listed("merges", str), scores, ids)
