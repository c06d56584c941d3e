"""The architectures that are converted, under the names that GGUF gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime_gguf.architectures.cohere import cohere2, command_r
from runtime_gguf.architectures.deepseek import deepseek2, dots1
from runtime_gguf.architectures.ernie import ernie4_5
from runtime_gguf.architectures.gemma import gemma, gemma2, gemma3
from runtime_gguf.architectures.glm import glm4, glm4moe
from runtime_gguf.architectures.gpt_oss import gpt_oss
from runtime_gguf.architectures.lfm2 import lfm2
from runtime_gguf.architectures.llama import granite, llama, mistral3, smollm3
from runtime_gguf.architectures.minimax import minimax_m2
from runtime_gguf.architectures.olmo import olmo2, olmoe
from runtime_gguf.architectures.phi import phi2, phi3
from runtime_gguf.architectures.qwen import qwen2, qwen2moe, qwen3, qwen3moe
from runtime_gguf.architectures.seed import seed_oss
from runtime_gguf.architectures.stablelm import stablelm
from runtime_gguf.architectures.starcoder import starcoder2
from runtime_gguf.blueprint import Blueprint
from runtime_gguf.metadata import Metadata
from runtime_gguf.rope import Factors

ARCHITECTURES: Mapping[str, Callable[[Metadata, Factors], Blueprint]] = {
    "cohere2": cohere2,
    "command-r": command_r,
    "deepseek2": deepseek2,
    "dots1": dots1,
    "ernie4_5": ernie4_5,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "glm4": glm4,
    "glm4moe": glm4moe,
    "gpt-oss": gpt_oss,
    "granite": granite,
    "lfm2": lfm2,
    "llama": llama,
    "minimax-m2": minimax_m2,
    "mistral3": mistral3,
    "olmo2": olmo2,
    "olmoe": olmoe,
    "phi2": phi2,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2moe": qwen2moe,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "seed_oss": seed_oss,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
