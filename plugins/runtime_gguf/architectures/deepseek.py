"""DeepSeek-V3 and R1, Kimi K2, and dots.llm1."""

from __future__ import annotations

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.blueprint import (
    Blueprint,
    Part,
    attention,
    base_config,
    endpoints,
    head_norms,
    linear,
    pre_norms,
    read_sizes,
    rms_eps,
    sized,
    vector,
)
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors, rope_scaling
from runtime_gguf.routing import read_routing, split_off_predicting


def deepseek2(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a DeepSeek-V3: attention over a latent vector that all heads share (MLA).

    llama.cpp's converter splits ``kv_b_proj`` into the two matrices that mlx-lm's model has, too.
    """
    if file.has_tensor("blk.0.attn_kv_b.weight"):
        raise ModelUnsupported(f"{file.path} was made before llama.cpp split attn_kv_b; use a newer file of the model")
    rotated, latent = file.positive("rope.dimension_count"), file.positive("attention.kv_lora_rank")
    key, value = file.positive("attention.key_length_mla"), file.positive("attention.value_length_mla")
    if rotated >= key or rotated % 2:
        raise CheckpointCorrupt(f"{file.path} rotates {rotated} of {key} dimensions")
    file.require("attention.key_length", latent + rotated, latent + rotated)
    file.require("attention.value_length", latent, latent)
    file.require("attention.head_count_kv", 1, 1)
    heads = file.positive("attention.head_count")
    sizes, unused = split_off_predicting(file, sized(file, key, heads))
    query = file.number("attention.q_lora_rank", 0)
    routing = read_routing(file, sizes)
    config = base_config(file, sizes, "deepseek_v3", "DeepseekV3ForCausalLM") | routing.config
    config |= {
        "rms_norm_eps": rms_eps(file),
        "kv_lora_rank": latent,
        "q_lora_rank": query or None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "rope_scaling": rope_scaling(file, factors, rotated, known=("linear", "yarn")),
    }
    del config["head_dim"]  # heads are not all of one size
    if not file.has_tensor("output.weight"):
        raise ModelUnsupported(f"{file.path} has no head of its own, and mlx-lm's deepseek_v3 needs one")
    queries = linear("attn_q", "self_attn.q_proj", heads * key, sizes.hidden)
    if query:
        queries = (
            *linear("attn_q_a", "self_attn.q_a_proj", query, sizes.hidden),
            *vector("attn_q_a_norm", "self_attn.q_a_layernorm", query),
            *linear("attn_q_b", "self_attn.q_b_proj", heads * key, query),
        )
    attending = (
        *pre_norms(sizes),
        *queries,
        *linear("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", latent + rotated, sizes.hidden),
        *vector("attn_kv_a_norm", "self_attn.kv_a_layernorm", latent),
        Part("attn_k_b.weight", "self_attn.embed_q.weight", (heads, latent, key - rotated)),
        Part("attn_v_b.weight", "self_attn.unembed_out.weight", (heads, value, latent)),
        *linear("attn_output", "self_attn.o_proj", sizes.hidden, heads * value),
    )
    return Blueprint(config, endpoints(file, sizes), lambda layer: (*attending, *routing.layer(layer)), unused)


def dots1(file: Metadata, factors: Factors) -> Blueprint:
    """Describe a dots.llm1."""
    sizes = read_sizes(file)
    file.require("rope.dimension_count", sizes.head_dim, sizes.head_dim)
    routing = read_routing(file, sizes, stack="experts")
    config = base_config(file, sizes, "dots1", "Dots1ForCausalLM") | routing.config
    config |= {"rms_norm_eps": rms_eps(file), "rope_scaling": rope_scaling(file, factors, sizes.head_dim)}
    attending = (*pre_norms(sizes), *attention(sizes), *head_norms(sizes))
    return Blueprint(config, endpoints(file, sizes), lambda layer: (*attending, *routing.layer(layer)))
