"""Writes a tiny model as the GGUF file that llama.cpp's converter would make of it.

Names of tensors and keys are the gguf package's own, so that whoever reads the file is checked against those and not
against itself. Imported by itself where it is wanted: it brings numpy and gguf with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, ExpertGatingFuncType, GGMLQuantizationType, RopeScalingType
from numpy.typing import NDArray

from runtime.testing.gguf_files import add_value, bpe_metadata, llama_cpp_order

ARCHITECTURES: Mapping[str, MODEL_ARCH] = {
    "cohere": MODEL_ARCH.COMMAND_R,
    "cohere2": MODEL_ARCH.COHERE2,
    "deepseek_v3": MODEL_ARCH.DEEPSEEK2,
    "dots1": MODEL_ARCH.DOTS1,
    "ernie4_5": MODEL_ARCH.ERNIE4_5,
    "gemma": MODEL_ARCH.GEMMA,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "glm4": MODEL_ARCH.GLM4,
    "glm4_moe": MODEL_ARCH.GLM4_MOE,
    "gpt_oss": MODEL_ARCH.GPT_OSS,
    "granite": MODEL_ARCH.GRANITE,
    "lfm2": MODEL_ARCH.LFM2,
    "llama": MODEL_ARCH.LLAMA,
    "minimax": MODEL_ARCH.MINIMAXM2,
    "ministral3": MODEL_ARCH.MISTRAL3,
    "mixtral": MODEL_ARCH.LLAMA,
    "olmo2": MODEL_ARCH.OLMO2,
    "olmo3": MODEL_ARCH.OLMO2,
    "olmoe": MODEL_ARCH.OLMOE,
    "phi": MODEL_ARCH.PHI2,
    "phi3": MODEL_ARCH.PHI3,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen2_moe": MODEL_ARCH.QWEN2MOE,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
    "seed_oss": MODEL_ARCH.SEED_OSS,
    "smollm3": MODEL_ARCH.SMOLLM3,
    "stablelm": MODEL_ARCH.STABLELM,
    "starcoder2": MODEL_ARCH.STARCODER2,
}
"""mlx-lm's modules, and GGUF's architectures for them."""

_INTERLEAVED = {"granite", "llama", "ministral3", "mixtral", "smollm3"}
_ONE_PLUS = {"gemma", "gemma2", "gemma3_text"}
_RENAMED = {
    "e_score_correction_bias": "e_score_correction.bias",
    ".embed_q.": ".k_b_proj.",
    ".unembed_out.": ".v_b_proj.",
}
"""What mlx-lm calls otherwise than llama.cpp's converter."""
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def export(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float32]],
    *,
    kind: str = "F32",
    keys: Mapping[str, Any] | None = None,
    split: int = 0,
) -> Path:
    """Write a model with a small byte-level tokenizer.

    Args:
        path: the file.
        config: Hugging Face's ``config.json``.
        weights: the parameters of mlx-lm's model, by their names there.
        kind: ggml type of the matrices whose rows its blocks divide; the rest is F32.
        keys: metadata to add or replace; None leaves a key out.
        split: the most tensors that a file may hold, 0 for any number. The files are then named as gguf-split does.

    Returns:
        The file, or the first of them.
    """
    model_type = str(config["model_type"])
    architecture = ARCHITECTURES[model_type]
    writer = gguf.GGUFWriter(str(path), MODEL_ARCH_NAMES[architecture], split_max_tensors=split)
    _add_settings(writer, config)
    tokenizer = bpe_metadata()
    prefix = MODEL_ARCH_NAMES[architecture] + "."
    for key, value in {**tokenizer, **(keys or {})}.items():
        add_value(writer, key.replace("{arch}.", prefix), value)
    names = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    encoding = GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[encoding][0]
    tensors = {_gguf_name(names, name): _as_converted(config, name, tensor) for name, tensor in weights.items()}
    for name, tensor in {**tensors, **_rope_factors(config)}.items():
        if tensor.ndim > 1 and tensor.shape[-1] % block == 0 and "ffn_gate_inp" not in name and "norm" not in name:
            writer.add_tensor(name, gguf.quants.quantize(tensor, encoding), raw_dtype=encoding)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.is_file() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    """Translate mlx-lm's name: to the one that llama.cpp's converter gives stacked tensors, and that to GGUF's."""
    stacked = re.fullmatch(r"model\.layers\.(\d+)\.(block_sparse_moe|mlp)\.switch_mlp\.(\w+)\.weight", name)
    if stacked:
        layer, owner, projection = stacked.groups()
        name = f"model.layers.{layer}.mlp.experts.{projection}.weight"
        if owner == "block_sparse_moe":
            name = f"layers.{layer}.feed_forward.experts.{_MIXTRAL[projection]}.weight"
    if name.endswith(".sinks"):
        name += ".weight"
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"GGUF has no name for {name} in this architecture")
    return str(found)


def _as_converted(config: Mapping[str, Any], name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Do to a tensor what llama.cpp's converter does."""
    model_type = config["model_type"]
    if model_type in _INTERLEAVED and re.search(r"\.[qk]_proj\.", name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        tensor = llama_cpp_order(tensor, heads)
    if model_type in _ONE_PLUS and name.endswith("norm.weight"):
        tensor = tensor + np.float32(1)
    if name.endswith(("shared_expert_gate.weight", "conv.conv.weight")):
        tensor = tensor.squeeze()
    return np.ascontiguousarray(tensor)


def _rope_factors(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") != "longrope":
        return {}
    return {
        f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"], dtype=np.float32)
        for name in ("long", "short")
    }


def _add_settings(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Write the keys that ``set_gguf_parameters`` of llama.cpp's converter writes."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "deepseek_v3":
        _add_latent_attention(writer, config)
        head_dim = config["qk_rope_head_dim"]
    elif config["model_type"] == "lfm2":
        counts = {"conv": 0, "full_attention": config["num_key_value_heads"]}
        writer.add_head_count_kv([counts[kind] for kind in config["layer_types"]])
        writer.add_shortconv_l_cache(config["conv_L_cache"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(
        config.get("rotary_dim") or int(head_dim * config.get("partial_rotary_factor", 1.0))
    )
    if config["model_type"] not in ("gemma", "gemma2"):
        writer.add_rope_freq_base(config["rope_theta"])
    for key, add in {
        "rms_norm_eps": writer.add_layer_norm_rms_eps,
        "norm_eps": writer.add_layer_norm_rms_eps,
        "layer_norm_eps": writer.add_layer_norm_eps,
        "norm_epsilon": writer.add_layer_norm_eps,
        "sliding_window": writer.add_sliding_window,
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "rope_local_base_freq": writer.add_rope_freq_base_swa,
        "logit_scale": writer.add_logit_scale,
        "logits_scaling": writer.add_logit_scale,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "num_local_experts": writer.add_expert_count,
        "num_experts": writer.add_expert_count,
        "num_experts_per_tok": writer.add_expert_used_count,
        "n_routed_experts": writer.add_expert_count,
        "n_shared_experts": writer.add_expert_shared_count,
        "first_k_dense_replace": writer.add_leading_dense_block_count,
        "routed_scaling_factor": writer.add_expert_weights_scale,
        "n_group": writer.add_expert_group_count,
        "topk_group": writer.add_expert_group_used_count,
        "moe_intermediate_size": writer.add_expert_feed_forward_length,
        "shared_expert_intermediate_size": writer.add_expert_shared_feed_forward_length,
    }.items():
        if key in config:
            add(config[key])
    if config["model_type"] == "minimax":
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if config["model_type"] in ("gpt_oss", "minimax"):
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if "n_routed_experts" in config:
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(config["norm_topk_prob"])
    if config["model_type"] == "stablelm":
        writer.add_parallel_residual(config["use_parallel_residual"])
    _add_rope_scaling(writer, config)


def _add_latent_attention(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    latent, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(latent)
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_key_length(latent + rotated)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])


def _add_rope_scaling(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    match scaling.get("type"):
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling["factor"])
        case "yarn":
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(scaling["factor"])
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
            if "beta_fast" in scaling:
                writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
                writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
            if "mscale_all_dim" in scaling:
                share = 0.1 if config["model_type"] == "deepseek_v3" else 1.0
                writer.add_rope_scaling_yarn_log_mul(share * scaling["mscale_all_dim"])
            if "llama_4_scaling_beta" in scaling:
                writer.add_attn_temperature_scale(scaling["llama_4_scaling_beta"])
        case "longrope":
            original = config["original_max_position_embeddings"]
            growth = config["max_position_embeddings"] / original
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(original)))
