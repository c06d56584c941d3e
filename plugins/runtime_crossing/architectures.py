"""The architectures of this family, and how each calls its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from runtime.spi import LayerCalls
from runtime_crossing.calls import FirstValues, FusedNorm, ResidualBlocks, SharedProjections, SkippedEmbedding
from runtime_crossing.compressed import CompressedKeys
from runtime_crossing.reuse import Gemma3n, Gemma4, LastLayersReuse


class Crossing(NamedTuple):
    """What crosses a cut of an architecture."""

    what: str
    """For people."""
    calls: Callable[[Mapping[str, Any]], LayerCalls]
    """Takes ``config.json``."""


def _afm7(config: Mapping[str, Any]) -> LayerCalls:
    return LastLayersReuse(config["num_layers"], config["num_kv_reuse_layers"])


def _gemma3n(config: Mapping[str, Any]) -> LayerCalls:
    text = config["text_config"]
    return Gemma3n(_last_of_kind(text["layer_types"], text["num_kv_shared_layers"]))


def _gemma4(config: Mapping[str, Any]) -> LayerCalls:
    from mlx_lm.models.gemma4_text import ModelArgs

    arguments = ModelArgs.from_dict(config.get("text_config") or config)
    return Gemma4(_last_of_kind(arguments.layer_types, arguments.num_kv_shared_layers))


def _deepseek_v41(config: Mapping[str, Any]) -> LayerCalls:
    text = config.get("text_config", config)
    return CompressedKeys(
        list(text.get("compress_ratios", ())),
        list(text.get("kv_source_layer_ids", ())),
        list(text.get("index_source_layer_ids", ())),
    )


def _last_of_kind(kinds: list[str], reusing: int) -> list[int]:
    """Return for each layer the one whose keys it attends with: itself, or the last of its kind that has its own."""
    own = len(kinds) - reusing
    last = {kind: layer for layer, kind in enumerate(kinds[:own])}
    return [layer if layer < own else last[kind] for layer, kind in enumerate(kinds)]


_REUSED = "keys and values that the last layers read again"
_INPUTS = "the token's input to each layer, and " + _REUSED

CROSSING_MODULES: dict[str, Crossing] = {
    "afm7": Crossing(_REUSED, _afm7),
    "deepseek_v41": Crossing("residual streams, compressed keys, and which of them to attend to", _deepseek_v41),
    "gemma3n": Crossing("residual streams, " + _INPUTS, _gemma3n),
    "gemma4": Crossing(_INPUTS, _gemma4),
    "gemma4_text": Crossing(_INPUTS, _gemma4),
    "hunyuan": Crossing("keys and values that the next layer shares", lambda config: SharedProjections()),
    "kimi_k3": Crossing("sums of the blocks of layers so far", lambda config: ResidualBlocks()),
    "muse_spark": Crossing("the stream; the norm before a cut is applied after it", lambda config: FusedNorm()),
    "rwkv7": Crossing("the values of the first layer", lambda config: FirstValues()),
    "talkie": Crossing("the normalized embedding", lambda config: SkippedEmbedding()),
}
"""By the name of mlx-lm's model module."""
