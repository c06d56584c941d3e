"""Checkpoints as Hugging Face has them: mlx-lm's ``sanitize()`` backwards.

:func:`raw` takes a model's parameters apart, so that mlx-lm's own loading puts them together again. It also adds what
such checkpoints have and mlx-lm drops: rotary frequencies, heads that predict further tokens, encoders of pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Weights = dict[str, mx.array]
Step = Callable[[Weights, dict[str, Any]], Weights]

MATRICES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
NUMBERED = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def raw(layout: str, weights: Weights, config: dict[str, Any]) -> Weights:
    """Return the weights of an mlx-lm model as a raw checkpoint holds them; layouts are named after modules."""
    for step in STEPS.get(layout, ()):
        weights = step(weights, config)
    return weights


def renamed(*pairs: tuple[str, str]) -> Step:
    """Replace regular expressions in names."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        for pattern, replacement in pairs:
            weights = {re.sub(pattern, replacement, name): array for name, array in weights.items()}
        return weights

    return step


def changed(pattern: str, change: Callable[[mx.array], mx.array]) -> Step:
    """Change the tensors whose names match."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        return {name: change(array) if re.search(pattern, name) else array for name, array in weights.items()}

    return step


def added(**shapes: tuple[int, ...]) -> Step:
    """Add tensors that mlx-lm drops; ``__`` in a name stands for a dot."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        return {**weights, **{name.replace("__", "."): mx.ones(shape) for name, shape in shapes.items()}}

    return step


def dropped(*names: str) -> Step:
    """Leave tensors out."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        return {name: array for name, array in weights.items() if name not in names}

    return step


def one_by_one(container: str, expert: str, projections: dict[str, str] | None = None) -> Step:
    """Take stacks of experts apart; ``{e}`` in ``expert`` is the number."""
    called = projections or MATRICES

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        apart: Weights = {}
        for name, array in weights.items():
            match = re.fullmatch(rf"(.+)\.{re.escape(container)}\.(\w+)\.(weight|scales|biases|bias)", name)
            if match is None or match[2] not in called:
                apart[name] = array
            else:
                for number in range(array.shape[0]):
                    apart[f"{match[1]}.{expert.format(e=number)}.{called[match[2]]}.{match[3]}"] = array[number]
        return apart

    return step


def fused(gate: str, fused_name: str, axis: int, change: Callable[[mx.array], mx.array] = mx.contiguous) -> Step:
    """Put each gate and its up projection into one tensor, and give the down projection the same form."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        joined = dict(weights)
        for name in weights:
            if name.endswith(gate) and ".shared_experts." not in name:
                block = name.removesuffix(gate)
                up = gate.replace("gate_proj", "up_proj")
                parts = [change(joined.pop(name)), change(joined.pop(f"{block}{up}"))]
                joined[f"{block}{fused_name}"] = mx.concatenate(parts, axis=axis)
                down = joined.pop(f"{block}{gate.replace('gate_proj', 'down_proj')}")
                joined[f"{block}{DOWN[fused_name]}"] = change(down)
        return joined

    return step


DOWN = {
    "experts.gate_up_proj": "experts.down_proj",
    "input_linear.weight": "output_linear.weight",
}


def latent(weights: Weights, config: dict[str, Any]) -> Weights:
    """Join what multi-head latent attention absorbs: ``kv_b_proj`` from ``embed_q`` and ``unembed_out``."""
    del config
    joined = dict(weights)
    for name in weights:
        if name.endswith(".embed_q.weight"):
            attention = name.removesuffix(".embed_q.weight")
            keys, values = joined.pop(name).swapaxes(-1, -2), joined.pop(f"{attention}.unembed_out.weight")
            joined[f"{attention}.kv_b_proj.weight"] = mx.concatenate([keys, values], axis=1).flatten(0, 1)
    return joined


def next_layer(weights: Weights, config: dict[str, Any]) -> Weights:
    """Add a layer after the last one, which predicts one more token."""
    del config
    last = max(int(match[1]) for name in weights if (match := re.match(r"model\.layers\.(\d+)\.", name)))
    extra = {"mlp.experts.0.up_proj.weight": (32, 64), "eh_proj.weight": (64, 128), "input_layernorm.weight": (64,)}
    return {**weights, **{f"model.layers.{last + 1}.{name}": mx.ones(shape) for name, shape in extra.items()}}


def _last_axis_second(array: mx.array) -> mx.array:
    return array.moveaxis(1, 2)


CONVOLUTION = changed(r"conv_?1d\.weight$", _last_axis_second)
SHORT_CONVOLUTION = changed(r"\.conv\.conv\.weight$", _last_axis_second)
NORMS_LESS_ONE = changed(
    r"(\.input_layernorm|\.post_attention_layernorm|model\.norm|\.q_norm|\.k_norm)\.weight$", lambda array: array - 1
)
MLP_EXPERTS = one_by_one("mlp.switch_mlp", "mlp.experts.{e}")
MIXTRAL = one_by_one("block_sparse_moe.switch_mlp", "block_sparse_moe.experts.{e}", NUMBERED)
BAILING = (MLP_EXPERTS, renamed((r"\.mlp\.gate\.gate_proj\.", ".mlp.gate.")))
FREQUENCIES = added(model__layers__1__self_attn__rotary_emb__inv_freq=(8,))
PICTURES = added(model__visual__blocks__1__attn__qkv__weight=(8, 8), model__visual__merger__norm__weight=(8,))
NESTED = renamed((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head"))


def one_matrix(weights: Weights, config: dict[str, Any]) -> Weights:
    """DBRX: each kind of matrix of all experts of a layer is one, one below the other; the last kind transposed."""
    del config
    rows: dict[str, list[mx.array]] = {}
    apart: Weights = {}
    for name, array in weights.items():
        match = re.fullmatch(r"(.+\.experts)\.\d+\.(w1|v1|w2)\.weight", name)
        if match:
            rows.setdefault(f"{match[1]}.mlp.{match[2]}", []).append(array.T if match[2] == "w2" else array)
        else:
            apart[name] = array
    return {**apart, **{name: mx.concatenate(arrays) for name, arrays in rows.items()}}


def split_rows(pattern: str, sizes: tuple[int, ...], names: tuple[str, ...]) -> Step:
    """Take a matrix apart by rows, in proportion to ``sizes``; ``names`` stand in for what matches."""

    def step(weights: Weights, config: dict[str, Any]) -> Weights:
        del config
        apart: Weights = {}
        for name, array in weights.items():
            if re.search(pattern, name):
                ends = [array.shape[0] * sum(sizes[: end + 1]) // sum(sizes) for end in range(len(sizes) - 1)]
                for part, called in zip(mx.split(array, ends), names, strict=True):
                    apart[re.sub(pattern, called, name)] = part
            else:
                apart[name] = array
        return apart

    return step


def residual_gates(weights: Weights, config: dict[str, Any]) -> Weights:
    """Muse Spark: a gate, from which two factors are computed."""
    del config
    apart: Weights = {}
    for name, array in weights.items():
        match = re.fullmatch(r"(.+)\.add_(attn|ffn)_(alpha|beta)", name)
        if match is None:
            apart[name] = array
        elif match[3] == "alpha":
            kind = {"attn": "post_attention", "ffn": "post_feedforward"}[match[2]]
            apart[f"{match[1]}.{kind}_residual_gate.gate"] = array
    return apart


def mamba_names(weights: Weights, config: dict[str, Any]) -> Weights:
    """Kimi's recurrent attention: the convolutions of query, key and value stand alone."""
    del config
    apart: Weights = {}
    for name, array in weights.items():
        match = re.fullmatch(r"(.+\.self_attn)\.([qkv])_conv\.conv\.weight", name)
        if match:
            apart[f"{match[1]}.{match[2]}_conv1d.weight"] = _last_axis_second(array)
        else:
            apart[name] = array
    return apart


KIMI = (
    one_by_one("mlp.switch_mlp", "block_sparse_moe.experts.{e}", NUMBERED),
    renamed(
        (r"\.mlp\.shared_experts\.", ".block_sparse_moe.shared_experts."),
        (r"\.mlp\.gate\.weight", ".block_sparse_moe.gate.weight"),
        (r"\.mlp\.e_score_correction_bias", ".block_sparse_moe.gate.e_score_correction_bias"),
    ),
    latent,
    mamba_names,
)
DEEPSEEK_V41 = (
    one_by_one("mlp.experts.switch_mlp", "ffn.experts.{e}", NUMBERED),
    changed(r"\.o_a_proj\.weight$", lambda array: array.flatten(0, 1)),
    renamed(
        (r"^model\.embed_tokens", "embed"),
        (r"^lm_head", "head"),
        (r"^model\.", ""),
        (r"\.compressor\.kv_norm\.", ".compressor.norm."),
        (r"\.compressor\.kv_proj\.", ".compressor.wkv."),
        (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
        (r"\.indexer\.k_proj\.", ".indexer.wk."),
        (r"\.mlp\.experts\.shared", ".ffn.shared"),
        (r"\.self_attn\.", ".attn."),
        (r"\.mlp\.", ".ffn."),
        (r"\.input_layernorm\.", ".attn_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
        (r"\.sinks$", ".attn_sink"),
        (r"\.q_a_proj\.", ".wq_a."),
        (r"\.q_b_proj\.", ".wq_b."),
        (r"\.kv_proj\.", ".wkv."),
        (r"\.o_a_proj\.", ".wo_a."),
        (r"\.o_b_proj\.", ".wo_b."),
        (r"\.q_a_norm\.", ".q_norm."),
        (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
        (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
        (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
        (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
    ),
    added(mtp__0__attn__wq_a__weight=(4, 4), vision__blocks__0__x=(4,)),
)
GPT2 = changed(r"(c_attn|c_proj|c_fc)\.weight$", lambda array: array.T)

STEPS: dict[str, tuple[Step, ...]] = {
    "Klear": (one_by_one("mlp.experts", "mlp.experts.{e}"),),
    "afmoe": (one_by_one("mlp.experts", "mlp.experts.{e}"), FREQUENCIES),
    "apertus": (changed(r"alpha_[pn]$", lambda array: array.reshape(1)),),
    "bailing_hybrid": (*BAILING, latent, next_layer),
    "bailing_moe": BAILING,
    "bailing_moe_linear": BAILING,
    "bailing_moe_v3": (MLP_EXPERTS, latent, CONVOLUTION, next_layer),
    "bitnet": (FREQUENCIES,),
    "dbrx": (one_matrix,),
    "deepseek": (MLP_EXPERTS,),
    "deepseek_v2": (MLP_EXPERTS,),
    "deepseek_v3": (MLP_EXPERTS, latent, FREQUENCIES),
    "deepseek_v32": (MLP_EXPERTS, latent, next_layer),
    "deepseek_v41": DEEPSEEK_V41,
    "dots1": (one_by_one("mlp.experts", "mlp.experts.{e}"), FREQUENCIES),
    "ernie4_5_moe": (MLP_EXPERTS, added(model__mtp_block__0__mlp__gate__weight=(4, 4))),
    "exaone_moe": (
        MLP_EXPERTS,
        renamed((r"\.mlp\.gate\.e_score_correction_bias", ".mlp.e_score_correction_bias")),
        added(mtp__layers__0__mlp__experts__0__up_proj__weight=(4, 4)),
    ),
    "falcon_h1": (CONVOLUTION,),
    "gear": (changed(r"(key|value)_conv\.weight$", _last_axis_second),),
    "gemma3": (added(vision_tower__encoder__layers__0__fc__weight=(4, 4)), dropped("language_model.lm_head.weight")),
    "gemma3_text": (dropped("lm_head.weight"),),
    "gemma4": (renamed((r"^language_model\.model\.", "model.language_model.")), added(model__vision_tower__x=(4,))),
    "gemma4_text with experts": (fused("experts.switch_glu.gate_proj.weight", "experts.gate_up_proj", -2),),
    "glm4_moe": (MLP_EXPERTS, next_layer),
    "glm4_moe_lite": (MLP_EXPERTS, latent, next_layer),
    "glm_moe_dsa": (MLP_EXPERTS, latent, next_layer),
    "gpt2": (GPT2, renamed((r"^model\.", "")), added(h__1__attn__bias=(1, 1, 8, 8))),
    "gpt_neox": (
        renamed((r"^model\.h\.", "gpt_neox.layers."), (r"^model\.(?!embed_out)", "gpt_neox."), (r"^model\.", "")),
        added(gpt_neox__layers__1__attention__masked_bias=()),
    ),
    "gptj": (renamed((r"^model\.", "transformer.")), added(transformer__h__1__attn__masked_bias=())),
    "granitemoe": (
        renamed((r"\.switch_mlp\.", ".")),
        fused("gate_proj.weight", "input_linear.weight", 1),
    ),
    "granitemoehybrid": (
        renamed((r"\.switch_mlp\.", ".")),
        fused("gate_proj.weight", "input_linear.weight", 1),
        CONVOLUTION,
    ),
    "hunyuan": (MLP_EXPERTS,),
    "internlm2": (added(model__layers__1__attention__rope__inv_freq=(8,)),),
    "jamba": (one_by_one("feed_forward.switch_mlp", "feed_forward.experts.{e}"), CONVOLUTION),
    "kimi_k25": (MLP_EXPERTS, latent, added(vision_tower__blocks__0__fc__weight=(4, 4))),
    "kimi_k3": (
        split_rows(r"\.qkv_proj\.", (1, 1, 1), (".q_proj.", ".k_proj.", ".v_proj.")),
        split_rows(r"\.qkv_conv\.", (1, 1, 1), (".q_conv.", ".k_conv.", ".v_conv.")),
        *KIMI,
        renamed((r"_res_(proj|norm)\.weight$", r"_res.\1_weight")),
        added(vision_tower__blocks__0__x=(4,)),
    ),
    "kimi_linear": KIMI,
    "kimi_vl": (MLP_EXPERTS, added(vision_tower__blocks__0__fc__weight=(4, 4))),
    "laguna": (
        MLP_EXPERTS,
        renamed(
            (r"\.mlp\.gate\.proj\.weight", ".mlp.gate.weight"),
            (r"\.mlp\.gate\.e_score_correction_bias", ".mlp.experts.e_score_correction_bias"),
        ),
    ),
    "lfm2": (changed(r"conv\.conv\.weight$", _last_axis_second),),
    "lfm2-vl": (added(vision_tower__layers__0__fc__weight=(4, 4)),),
    "lfm2_moe": (
        one_by_one("feed_forward.switch_mlp", "feed_forward.experts.{e}", NUMBERED),
        renamed(
            (r"\.feed_forward\.gate_proj\.", ".feed_forward.w1."),
            (r"\.feed_forward\.down_proj\.", ".feed_forward.w2."),
            (r"\.feed_forward\.up_proj\.", ".feed_forward.w3."),
        ),
        changed(r"conv\.conv\.weight$", _last_axis_second),
    ),
    "lille-130m": (added(transformer__layers__1__attention__rotary_emb__inv_freq=(8,)),),
    "llama": (FREQUENCIES,),
    "llama4": (
        fused("experts.gate_proj.weight", "experts.gate_up_proj", -1, lambda array: array.swapaxes(1, 2)),
        added(vision_model__model__layers__0__fc__weight=(4, 4)),
    ),
    "longcat_flash": (MLP_EXPERTS, latent, added(model__mtp__layers__0__eh_proj__weight=(4, 4))),
    "longcat_flash_ngram": (
        MLP_EXPERTS,
        latent,
        renamed((r"^model\.ngram_embeddings\.word_embeddings\.", "model.embed_tokens.")),
    ),
    "mamba": (CONVOLUTION,),
    "mamba2": (CONVOLUTION,),
    "mellum": (MLP_EXPERTS,),
    "mimo": (added(model__mtp_layers__0__input_proj__weight=(4, 4)),),
    "mimo_v2_flash": (MLP_EXPERTS, added(model__mtp__layers__0__eh_proj__weight=(4, 4))),
    "minicpm": (dropped("lm_head.weight"),),
    "minimax": (MIXTRAL,),
    "minimax_m3_vl": (MIXTRAL, added(vision_tower__layers__0__fc__weight=(4, 4))),
    "mistral3": (renamed((r"^language_model\.model\.", "model.language_model.")), added(model__vision_tower__x=(4,))),
    "mistral4": (
        renamed((r"\.mlp\.switch_mlp\.(\w+)\.weight", r".mlp.experts.\1.weight")),
        fused("experts.gate_proj.weight", "experts.gate_up_proj", 1),
        latent,
    ),
    "mixtral": (MIXTRAL,),
    "muse_glimmer": (renamed((r"^model\.", "model.language_model.")), added(vision_tower__layers__0__x=(4,))),
    "muse_spark": (
        residual_gates,
        split_rows(r"\.qkvg_proj\.", (2, 1, 1, 2), (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.")),
        fused("experts.gate_proj.weight", "experts.gate_up_proj", 1),
        added(model__audio_tower__layers__0__x=(4,)),
    ),
    "nemotron_h": (
        one_by_one("mixer.switch_mlp", "mixer.experts.{e}", {"fc1": "up_proj", "fc2": "down_proj"}),
        CONVOLUTION,
        added(mtp__layers__0__mixer__weight=(4, 4)),
    ),
    "olmo2": (FREQUENCIES,),
    "olmo_hybrid": (CONVOLUTION,),
    "olmoe": (MLP_EXPERTS,),
    "phimoe": (MIXTRAL,),
    "phixtral": (one_by_one("moe.switch_mlp", "moe.mlp.{e}", {"fc1": "fc1", "fc2": "fc2"}),),
    "pixtral": (added(vision_tower__transformer__layers__0__x=(4,)),),
    "plamo2": (CONVOLUTION,),
    "qwen2_moe": (MLP_EXPERTS,),
    "qwen2_vl": (NESTED, added(visual__blocks__1__x=(4,))),
    "qwen3_5": (NESTED, CONVOLUTION, NORMS_LESS_ONE, PICTURES, added(mtp__layers__0__x=(4,))),
    "qwen3_5_moe": (
        renamed((r"\.mlp\.switch_mlp\.(\w+)\.weight", r".mlp.experts.\1.weight")),
        fused("experts.gate_proj.weight", "experts.gate_up_proj", -2),
        NESTED,
        CONVOLUTION,
        NORMS_LESS_ONE,
        PICTURES,
        added(mtp__layers__0__mlp__experts__gate_up_proj=(4, 4)),
    ),
    "qwen3_moe": (MLP_EXPERTS,),
    "qwen3_next": (MLP_EXPERTS, CONVOLUTION, NORMS_LESS_ONE, added(mtp__layers__0__mlp__experts__0__x__weight=(4,))),
    "qwen3_vl": (NESTED, added(model__visual__blocks__1__x=(4,))),
    "qwen3_vl_moe": (
        renamed((r"\.mlp\.switch_mlp\.(\w+)\.weight", r".mlp.experts.\1.weight")),
        fused("experts.gate_proj.weight", "experts.gate_up_proj", -1, lambda array: array.swapaxes(1, 2)),
        NESTED,
        PICTURES,
    ),
    "recurrent_gemma": (CONVOLUTION, dropped("lm_head.weight")),
    "rwkv7": (changed(r"(k_k|k_a|g_norm.*)$", lambda array: array.reshape(-1)),),
    "solar_open": (MLP_EXPERTS, next_layer),
    "spark2_5": (FREQUENCIES,),
    "step3p5": (
        changed(r"norm.*\.weight$", lambda array: array - 1),
        renamed(
            (r"\.mlp\.switch_mlp\.", ".moe."),
            (r"\.mlp\.gate\.gate\.", ".moe.gate."),
            (r"\.mlp\.gate\.router_bias", ".moe.router_bias"),
            (r"\.mlp\.share_expert\.", ".share_expert."),
        ),
        added(model__layers__4__input_layernorm__weight=(4,), model__layers__4__moe__gate__weight=(4, 4)),
    ),
    "talkie": (added(rotary__cos=(4, 4)),),
}
