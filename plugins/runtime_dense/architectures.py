"""The architectures that this family runs, each proved by tests against mlx-lm's own forward pass and full load."""

from __future__ import annotations

DENSE_MODULES = frozenset(
    {
        "apertus",
        "baichuan_m1",
        "bitnet",
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone",
        "exaone4",
        "falcon_h1",
        "gear",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "granite",
        "helium",
        "hunyuan_v1_dense",
        "internlm2",
        "internlm3",
        "lfm2",
        "lfm2-vl",
        "lille-130m",
        "llama",
        "llama4_text",
        "mamba",
        "mamba2",
        "mimo",
        "minicpm",
        "minicpm3",
        "ministral3",
        "mistral3",
        "muse_glimmer",
        "nanbeige",
        "nanochat",
        "nemotron",
        "nemotron-nas",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "openelm",
        "phi",
        "phi3",
        "phi3small",
        "pixtral",
        "plamo",
        "plamo2",
        "plamo3",
        "prism_hadamard_qwen35",
        "qwen",
        "qwen2",
        "qwen2_vl",
        "qwen3",
        "qwen3_5",
        "qwen3_vl",
        "recurrent_gemma",
        "seed_oss",
        "smollm3",
        "spark2_5",
        "stablelm",
        "starcoder2",
        "telechat3",
        "youtu_llm",
    }
)
"""Names of mlx-lm's model modules: attention of any kind, recurrent layers, and hybrids of both, without experts."""

NEEDS_METAL = frozenset({"bitnet"})
"""Those of them that have no kernel for other devices."""

REFUSED_MODULES = {
    "iquestloopcoder": "it goes through its layers twice for each token, and the second time reads what the first "
    "left, so no stage could hand them on to the next",
    "olmo": "mlx-lm runs it only with the package ai2-olmo, and ends the process without it; OLMo 2 and 3 run",
}
"""Modules that are no mixtures of experts either, and why they do not run."""
