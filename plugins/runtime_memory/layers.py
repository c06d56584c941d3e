"""Which layer of a model keeps which caches: the rules of mlx-lm 0.32's modules, from the configuration alone.

A type without a rule of its own keeps keys and values for every token in every layer, which is the most that any does.
``tests/plugins/test_memory_caches.py`` compares each rule with the caches that mlx-lm's own module makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.spi import Checkpoint
from runtime_memory.caches import Attention, Cache, State
from runtime_memory.sizes import Sizes, number

Config = dict[str, Any]
Rule = Callable[[Config, Sizes, int, int], tuple[Cache, ...]]
"""From the configuration, its sizes, the layer's index and the number of layers to what that layer keeps."""


def layer_caches(checkpoint: Checkpoint) -> tuple[tuple[Cache, ...], ...]:
    """Return what each layer of a model keeps of a sequence.

    Raises:
        CheckpointCorrupt: the configuration lacks a size.
    """
    config, layers, sizes = checkpoint.text_config, checkpoint.num_layers, Sizes.of(checkpoint)
    rule = _rule(checkpoint)
    try:
        return tuple(rule(config, sizes, layer, layers) for layer in range(layers))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        # The configuration lacks what the rule reads; what is wrong with it the family says when it builds the model.
        return ((_keys_and_values(sizes),),) * layers


def _rule(checkpoint: Checkpoint) -> Rule:
    config = checkpoint.text_config
    name = str(config.get("model_type"))
    if checkpoint.model_type in _FULL_AROUND:
        name = checkpoint.model_type
    if name == "bailing_hybrid" and "BailingMoeV3ForCausalLM" in (config.get("architectures") or ()):
        return _bailing_v3
    found = _RULES.get(name)
    if found is not None:
        return found
    return _latent if config.get("kv_lora_rank") else _full


def _keys_and_values(sizes: Sizes, window: int | None = None) -> Attention:
    return Attention(sizes.kv_heads, sizes.head_dim, sizes.head_dim, window)


def _full(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (_keys_and_values(sizes),)


def _nothing_reused(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    shared = number(config, "num_kv_reuse_layers", "num_kv_shared_layers", default=0)
    return () if layer >= layers - shared else (_keys_and_values(sizes),)


# -- attention of other shapes ----------------------------------------------------------------------------------------


def _latent(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    """Multi-head latent attention: one latent for all heads, and with sparse attention the keys of its index."""
    latent = Attention(1, config["kv_lora_rank"], config["qk_rope_head_dim"])
    index = number(config, "index_head_dim", default=0)
    return (latent, Attention(1, index, index)) if index else (latent,)


def _twice_latent(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return 2 * _latent(config, sizes, layer, layers)


def _expanded_latent(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    """Latent attention whose module keeps the keys and values that it makes of the latent."""
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return (Attention(sizes.heads, key, number(config, "v_head_dim", default=sizes.hidden // sizes.heads)),)


def _multi_query(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    heads = 1 if config.get("multi_query", True) else sizes.heads
    return (Attention(heads, sizes.head_dim, sizes.head_dim),)


def _heads_by_layer(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (Attention(config["num_kv_heads"][layer], sizes.head_dim, sizes.head_dim),)


def _searched(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    attention = config["block_configs"][layer]["attention"]
    group = attention.get("n_heads_in_group")
    return (Attention(sizes.heads // group, sizes.head_dim, sizes.head_dim),) if group else ()


def _looped(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    further = config.get("loop_loss_weights")
    loops = len(further) + 1 if further else number(config, "num_loops", default=1)
    return loops * (_keys_and_values(sizes),)


def _looped_window(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (_keys_and_values(sizes), _keys_and_values(sizes, number(config, "loop_window_size", default=64)))


def _indexed(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    sparse = config.get("sparse_attention_config") or {}
    frequency = sparse.get("sparse_attention_freq")
    if not sparse or (frequency is not None and not frequency[layer]):
        return (_keys_and_values(sizes),)
    return (_keys_and_values(sizes), Attention(1, number(sparse, "sparse_index_dim", default=128), 0))


# -- layers with a window ---------------------------------------------------------------------------------------------


def _by_type(cycle: tuple[str, ...]) -> Rule:
    """Layers are listed as ``sliding_attention`` or full; where they are not, they go by ``cycle``."""

    def rule(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
        kinds = config.get("layer_types") or [cycle[index % len(cycle)] for index in range(layers)]
        return (_keys_and_values(sizes, config["sliding_window"] if kinds[layer] == _SLIDING else None),)

    return rule


def _by_count(default: int) -> Rule:
    """Every so many layers one looks back on everything."""

    def rule(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
        pattern = number(config, "sliding_window_pattern", default=default)
        window = config.get("sliding_window") or config["window_size"]
        return (_keys_and_values(sizes, None if layer % pattern == pattern - 1 else window),)

    return rule


def _by_letter(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    pattern = str(config.get("sliding_window_pattern") or "G")
    local = pattern[layer % len(pattern)] == "L"
    return (_keys_and_values(sizes, config["sliding_window"] if local else None),)


def _chunked(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    chunk = number(config, "attention_chunk_size", default=8192)
    return (_keys_and_values(sizes, chunk if (layer + 1) % 4 else None),)


def _shared_sliding(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    """Gemma 3n and 4: the last layers use the caches of earlier ones, and full layers may have other heads."""
    if layer >= layers - number(config, "num_kv_shared_layers", default=0):
        return ()
    if config["layer_types"][layer] == _SLIDING:
        return (_keys_and_values(sizes, config["sliding_window"]),)
    heads = sizes.kv_heads
    if config.get("attention_k_eq_v"):
        heads = number(config, "num_global_key_value_heads", default=heads)
    size = number(config, "global_head_dim", default=sizes.head_dim)
    return (Attention(heads, size, size),)


def _two_shapes(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    if config["hybrid_layer_pattern"][layer] != 1:
        return (Attention(sizes.kv_heads, sizes.head_dim, config["v_head_dim"]),)
    window = config["sliding_window_size"]
    return (Attention(config["swa_num_key_value_heads"], config["swa_head_dim"], config["swa_v_head_dim"], window),)


def _two_groups(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kinds = config.get("layer_types")
    if not (kinds[layer] == _SLIDING if kinds else layer % 2 == 0):
        return (Attention(config["num_attention_groups"], sizes.head_dim, sizes.head_dim),)
    heads = (config.get("attention_other_setting") or config)["num_attention_groups"]
    return (Attention(heads, sizes.head_dim, sizes.head_dim, config["sliding_window"]),)


# -- convolutions and recurrences -------------------------------------------------------------------------------------


def _mamba(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    wide = number(config, "intermediate_size", default=number(config, "expand", default=2) * sizes.hidden)
    kernel = number(config, "conv_kernel", "d_conv", default=4)
    return (State(wide, kernel - 1, wide * number(config, "state_size", "d_state", default=16)),)


def _selective(heads: int, head_dim: int, groups: int, state: int, kernel: int) -> State:
    """Mamba 2's mixer: a convolution over inputs, B and C, and a matrix for each head."""
    return State(heads * head_dim + 2 * groups * state, kernel - 1, heads * head_dim * state, heads)


def _mamba2(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (
        _selective(
            config["num_heads"], config["head_dim"], config["n_groups"], config["state_size"], config["conv_kernel"]
        ),
    )


def _granite_mixer(config: Config) -> State:
    return _selective(
        config["mamba_n_heads"],
        config["mamba_d_head"],
        config["mamba_n_groups"],
        config["mamba_d_state"],
        config["mamba_d_conv"],
    )


def _granite_hybrid(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (_granite_mixer(config) if config["layer_types"][layer] == "mamba" else _keys_and_values(sizes),)


def _falcon_h1(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (_granite_mixer(config), _keys_and_values(sizes))


def _nemotron_h(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kind = (config.get("hybrid_override_pattern") or config.get("layers_block_type") or config["layer_types"])[layer]
    if kind in ("*", "attention"):
        return (_keys_and_values(sizes),)
    if kind not in ("M", "mamba"):
        return ()
    return (
        _selective(
            config["mamba_num_heads"],
            config["mamba_head_dim"],
            config["n_groups"],
            config["ssm_state_size"],
            config["conv_kernel"],
        ),
    )


def _jamba(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kinds = config.get("layers_block_type")
    attends = layer % config["attn_layer_period"] == config["attn_layer_offset"]
    if kinds[layer] == "attention" if kinds else attends:
        return (_keys_and_values(sizes),)
    wide = config["mamba_expand"] * sizes.hidden
    return (State(wide, config["mamba_d_conv"] - 1, wide * config["mamba_d_state"]),)


def _plamo2(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    step = number(config, "mamba_step", default=2)
    recurs = layer != layers - 1 if layers <= step // 2 else layer % step != step // 2
    if not config.get("mamba_enabled", True) or not recurs:
        return (_keys_and_values(sizes),)
    wide = config["mamba_num_heads"] * config["hidden_size_per_head"]
    return (State(wide, config["mamba_d_conv"] - 1, wide * config["mamba_d_state"]),)


def _short_convolution(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    attends = config.get("full_attn_idxs")
    if attends is None:
        attends = [index for index, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    return (_keys_and_values(sizes) if layer in attends else State(sizes.hidden, config["conv_L_cache"] - 1, 0),)


def _delta(config: Config) -> State:
    """A gated delta net: a convolution over queries, keys and values, and a matrix for each value head."""
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    kernel = config["linear_conv_kernel_dim"]
    return State(2 * keys + values, kernel - 1, values * config["linear_key_head_dim"])


def _delta_between(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    every = number(config, "full_attention_interval", default=4)
    return (_delta(config) if (layer + 1) % every else _keys_and_values(sizes),)


def _delta_by_type(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kinds = config.get("layer_types")
    full = kinds[layer] == "full_attention" if kinds else layer % 4 == 3
    return (_keys_and_values(sizes) if full else _delta(config),)


def _kimi_delta(heads: int, head_dim: int, kernel: int) -> State:
    return State(3 * heads * head_dim, kernel - 1, heads * head_dim**2)


def _kimi_linear(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    linear = config["linear_attn_config"]
    if layer + 1 not in linear["kda_layers"]:
        return _latent(config, sizes, layer, layers)
    return (_kimi_delta(linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"]),)


def _is_last_of_group(config: Config, layer: int, layers: int) -> bool:
    group = int(config["layer_group_size"])
    return (layer + 1) % group == 0 or layer >= layers // group * group


def _bailing_v3(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    if _is_last_of_group(config, layer, layers):
        return _latent(config, sizes, layer, layers)
    return (_kimi_delta(sizes.heads, sizes.head_dim, number(config, "short_conv_kernel_size", default=4)),)


def _bailing_linear(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    if not _is_last_of_group(config, layer, layers):
        return (State(0, 0, sizes.heads * sizes.head_dim**2),)
    return _latent(config, sizes, layer, layers) if config.get("kv_lora_rank") else (_keys_and_values(sizes),)


def _griffin(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kinds = config.get("block_types") or config["_block_types"]
    if kinds[layer % len(kinds)] == "attention":
        return (Attention(1, sizes.head_dim, sizes.head_dim, config["attention_window_size"]),)
    wide = number(config, "lru_width", default=sizes.hidden)
    return (State(wide, config["conv1d_width"] - 1, wide),)


def _rwkv(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    return (State(sizes.hidden, 2, sizes.hidden * config["head_dim"]),)


def _baichuan(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    slides = layer in config["sliding_window_layers"]
    heads = number(config, "num_swa_key_value_heads", default=sizes.kv_heads) if slides else sizes.kv_heads
    window = config["sliding_window"] if slides else None
    return State(2 * heads * sizes.head_dim, 1, 0), Attention(heads, sizes.head_dim, sizes.head_dim, window)


def _gear(config: Config, sizes: Sizes, layer: int, layers: int) -> tuple[Cache, ...]:
    kinds = config.get("layer_types")
    if not kinds or kinds[layer] != "conv_mixer":
        return _by_type(("full_attention",))(config, sizes, layer, layers)
    kernel = number(config, "conv_kernel_size", "conv_kernel", default=3)
    return (State(2 * sizes.kv_heads * sizes.head_dim, kernel - 1, 0),)


_SLIDING = "sliding_attention"
_THREE_AND_ONE = (_SLIDING, _SLIDING, _SLIDING, "full_attention")

_FULL_AROUND = frozenset({"llava", "mistral3", "pixtral"})
"""Types around a text model whose own choice of caches they do not ask for."""

_RULES: dict[str, Rule] = {
    "afm7": _nothing_reused,
    "afmoe": _by_type(("full_attention",)),
    "baichuan_m1": _baichuan,
    "bailing_hybrid": _bailing_linear,
    "bailing_moe_linear": _bailing_linear,
    "cohere2": _by_count(4),
    "deepseek_v2": _expanded_latent,
    "exaone4": _by_letter,
    "exaone_moe": _by_type(("full_attention",)),
    "falcon_h1": _falcon_h1,
    "falcon_mamba": _mamba,
    "gear": _gear,
    "gemma3": _by_count(6),
    "gemma3_text": _by_count(6),
    "gemma3n": _shared_sliding,
    "gemma3n_text": _shared_sliding,
    "gemma4": _shared_sliding,
    "gemma4_text": _shared_sliding,
    "gpt_bigcode": _multi_query,
    "gpt_oss": _by_type((_SLIDING, "full_attention")),
    "granitemoehybrid": _granite_hybrid,
    "iquestloopcoder": _looped_window,
    "jamba": _jamba,
    "kimi_linear": _kimi_linear,
    "laguna": _by_type(("full_attention",)),
    "lfm2": _short_convolution,
    "lfm2_moe": _short_convolution,
    "iquestcoder": _by_type(("full_attention",)),
    "llama": _by_type(("full_attention",)),
    "mistral": _by_type(("full_attention",)),
    "xverse": _by_type(("full_attention",)),
    "llama4": _chunked,
    "llama4_text": _full,
    "longcat_flash": _twice_latent,
    "longcat_flash_ngram": _twice_latent,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "mellum": _by_type(("full_attention",)),
    "mimo_v2_flash": _two_shapes,
    "minicpm3": _expanded_latent,
    "minimax_m3_vl": _indexed,
    "ministral3": _by_type(("full_attention",)),
    "muse_glimmer": _by_type(_THREE_AND_ONE),
    "muse_spark": _by_type(("full_attention",)),
    "nanbeige": _looped,
    "nemotron-nas": _searched,
    "nemotron_h": _nemotron_h,
    "olmo3": _by_type(_THREE_AND_ONE),
    "olmo_hybrid": _delta_by_type,
    "openelm": _heads_by_layer,
    "plamo2": _plamo2,
    "plamo3": _by_count(8),
    "qwen3_5": _delta_between,
    "qwen3_5_moe": _delta_between,
    "qwen3_5_text": _delta_between,
    "qwen3_next": _delta_between,
    "recurrent_gemma": _griffin,
    "rwkv7": _rwkv,
    "spark2_5": _by_type(_THREE_AND_ONE),
    "step3p5": _two_groups,
    "youtu_llm": _expanded_latent,
}
