"""Describing a model from its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from runtime.spi import Checkpoint, ModelCard, ModelListing


def describe(listing: ModelListing, checkpoint: Checkpoint) -> ModelCard:
    """Return what the configuration, the tensor headers and the tokenizer's configuration say of a model."""
    config = checkpoint.text_config
    return ModelCard(
        name=listing.name,
        source=listing.source,
        bytes=listing.bytes or checkpoint.nbytes,
        modified=listing.modified,
        architecture=checkpoint.model_type,
        parameters=_parameters(checkpoint),
        quantization=_quantization(checkpoint),
        context=checkpoint.context,
        layers=checkpoint.num_layers,
        hidden_size=_positive(config.get("hidden_size")) or _positive(config.get("n_embd")),
        digest=checkpoint.digest,
        chat_template=_chat_template(checkpoint.path),
        license=_license(checkpoint.path),
        config=checkpoint.config,
    )


def undescribed(listing: ModelListing) -> ModelCard:
    """Return what is known of a model that must be converted before its files can be read: next to nothing."""
    return ModelCard(
        name=listing.name,
        source=listing.source,
        bytes=listing.bytes,
        modified=listing.modified,
        architecture="",
        parameters=0,
        quantization="",
        context=0,
        layers=0,
        hidden_size=0,
        digest="",
        chat_template=None,
        license=None,
        config={},
    )


def _parameters(checkpoint: Checkpoint) -> int:
    """Count weights: packed ones by what they unpack to, their scales and biases not at all."""
    names = checkpoint.tensors
    count = 0
    for name, tensor in names.items():
        prefix, _, kind = name.rpartition(".")
        if f"{prefix}.scales" in names and kind in ("scales", "biases"):
            continue
        if kind == "weight" and f"{prefix}.scales" in names:
            settings = checkpoint.quantization or {}
            own = settings.get(prefix)
            bits = _positive((own if isinstance(own, dict) else settings).get("bits"))
            count += tensor.size * 32 // (bits or 4)
        else:
            count += tensor.size
    return count


def _quantization(checkpoint: Checkpoint) -> str:
    settings = checkpoint.quantization
    if settings is not None:
        return f"{settings.get('bits', '?')}bit/{settings.get('group_size', '?')}"
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "unknown"


def _chat_template(path: Path) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    template = _json(path / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        # Several by name, as transformers wrote them until 4.52.
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _license(path: Path) -> str | None:
    """Return the licence that the model card's front matter names."""
    readme = path / "README.md"
    if not readme.is_file():
        return None
    text = readme.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    match = re.search(r"^license:[ \t]*(\S+)", front.group(1), re.MULTILINE) if front else None
    return match.group(1) if match else None


def _positive(value: Any) -> int:
    """Return a positive integer of a configuration, 0 for anything else: a card describes damaged models too."""
    return value if type(value) is int and value > 0 else 0


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or nothing where the file is absent or damaged: what it adds here is optional."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last for brackets nested a thousand deep
        return {}
    return value if isinstance(value, dict) else {}
