"""What ``/api/tags``, ``/api/show`` and ``/api/ps`` say of a model."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.spi import LoadedModel, ModelCard
from runtime_ollama.duration import expiry, nanoseconds, rfc3339
from runtime_ollama.names import tagged

_METADATA = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "feed_forward_length": "intermediate_size",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""GGUF's keys (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), which follow the architecture's name, and
those of ``config.json``."""


class Details(msgspec.Struct, frozen=True):
    """``details`` of a model."""

    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""
    format: str = "safetensors"

    @classmethod
    def of(cls, card: ModelCard) -> Details:
        """Describe a model on this machine."""
        return cls(
            family=card.architecture,
            families=[card.architecture],
            parameter_size=parameter_size(card.parameters),
            quantization_level=card.quantization,
        )


class Tag(msgspec.Struct, frozen=True):
    """A model on this machine."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details

    @classmethod
    def of(cls, card: ModelCard) -> Tag:
        """Describe a model."""
        name = tagged(card.name)
        modified = rfc3339(nanoseconds(card.modified))
        return cls(name, name, modified, card.bytes, card.digest, Details.of(card))


class Process(msgspec.Struct, frozen=True):
    """A model being served."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int

    @classmethod
    def of(cls, loaded: LoadedModel, card: ModelCard | None) -> Process:
        """Describe a served model. A model that another node serves may have no card here."""
        name = tagged(loaded.name)
        details = Details.of(card) if card else Details("", [], "", "")
        # All of it is in the memory that MLX computes in; Ollama splits a model between CPU and GPU.
        return cls(
            name, name, loaded.bytes, loaded.digest, details, expiry(loaded.expires), loaded.bytes, loaded.context
        )


class Show(msgspec.Struct, frozen=True):
    """``/api/show``."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, card: ModelCard) -> Show:
        """Describe a model at length."""
        return cls(
            modelfile=f"# A summary by this server; it builds no models from Modelfiles.\nFROM {card.name}\n",
            parameters=f"num_ctx                        {card.context}",
            template=card.chat_template or "",
            details=Details.of(card),
            model_info=model_info(card),
            capabilities=["completion"],
            modified_at=rfc3339(nanoseconds(card.modified)),
            license=card.license or msgspec.UNSET,
        )


def model_info(card: ModelCard) -> dict[str, Any]:
    """Return the model's metadata under GGUF's keys, as clients look for them."""
    architecture = card.architecture
    info: dict[str, Any] = {
        "general.architecture": architecture,
        "general.basename": card.name,
        "general.parameter_count": card.parameters,
        f"{architecture}.block_count": card.layers,
        f"{architecture}.context_length": card.context,
        f"{architecture}.embedding_length": card.hidden_size,
    }
    nested = card.config.get("text_config")
    config = {**card.config, **nested} if isinstance(nested, dict) else card.config
    for key, name in _METADATA.items():
        if isinstance(config.get(name), int | float):
            info[f"{architecture}.{key}"] = config[name]
    return info


def parameter_size(parameters: int) -> str:
    """Write a number of weights as Ollama does: ``134.5M``, ``7B``, ``1.1T``."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}".replace(f".0{unit}", unit)
    return str(parameters)
