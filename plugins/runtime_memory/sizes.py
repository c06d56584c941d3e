"""The sizes that a configuration states, under whichever of their names."""

from __future__ import annotations

from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt
from runtime.spi import Checkpoint

_ONE_EACH = frozenset({"gpt2", "gpt_neox", "gptj", "phi-msft", "phixtral", "qwen", "talkie"})
"""Types whose every query head has a key-value head of its own, whatever the configuration says of those."""

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts")


class Sizes(NamedTuple):
    """What the shapes of a layer are made of."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width of a feed-forward layer; 0 where experts take its place."""
    chosen: int
    """Experts that a token goes through."""
    expert: int
    """Width of one of them."""
    vocabulary: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Sizes:
        """Read them.

        Raises:
            CheckpointCorrupt: one is missing.
        """
        config = checkpoint.text_config
        hidden = _needed(checkpoint, "hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim")
        heads = number(config, "num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads", default=1)
        kv_heads = number(
            config, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups", default=heads
        )
        dense = number(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden)
        chosen = number(config, *_CHOSEN, default=0)
        stated = number(config, "moe_intermediate_size", "expert_ffn_hidden_size", default=0)
        if config.get("model_type") in _ONE_EACH:
            kv_heads = heads
        return cls(
            hidden=hidden,
            heads=heads,
            kv_heads=number(config.get("attn_config") or {}, "kv_n_heads", default=kv_heads),
            head_dim=number(config, "head_dim", "kv_channels", "hidden_size_per_head", default=max(1, hidden // heads)),
            inner=0 if chosen and not stated else dense,
            chosen=chosen,
            expert=stated or dense,
            vocabulary=_needed(checkpoint, "vocab_size", "num_vocab"),
        )


def number(config: dict[str, Any], *keys: str, default: int) -> int:
    """Return the first of these keys that holds a positive number, or of a list of them the largest."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            value = max(value)
        if type(value) is int and value > 0:  # not a bool, which is an int too
            return value
    return default


def _needed(checkpoint: Checkpoint, *keys: str) -> int:
    value = number(checkpoint.text_config, *keys, default=0)
    if not value:
        raise CheckpointCorrupt(f"{checkpoint.path / 'config.json'} gives no {keys[0]}, so no memory can be estimated")
    return value
