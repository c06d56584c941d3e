"""Which files of a repository make a model, and whether they are all there."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ALLOWED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Weights without code in them, configuration, and tokenizers. Never Python, pickles or ``.bin``."""

IGNORED = ("*/*", "consolidated*")
"""Folders hold other formats of the same weights, and so do Mistral's ``consolidated`` files."""

_NAME = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>\w[\w./-]{0,254}))?", re.ASCII)


class RepoName(NamedTuple):
    """A model's name, taken apart."""

    repo: str
    revision: str

    @classmethod
    def parse(cls, name: str) -> RepoName | None:
        """Read ``org/name[@revision]``, or return None for what cannot be a repository's name."""
        match = _NAME.fullmatch(name)
        if match is None or ".." in name or "--" in match["repo"] or match["repo"].endswith((".", "-", ".git")):
            return None
        return cls(match["repo"], match["revision"] or "main")


def is_wanted(name: str) -> bool:
    """Whether a repository's file is one to download; the patterns mean what they mean to huggingface_hub."""
    return any(fnmatch(name, form) for form in ALLOWED) and not any(fnmatch(name, form) for form in IGNORED)


def missing_files(folder: Path) -> list[str]:
    """Name what a snapshot lacks to be loaded, from its own index; empty when it is complete."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [*missing, index.name]
        return missing + [file for file in files if not (folder / file).is_file()]
    return missing if any(folder.glob("*.safetensors")) else [*missing, "*.safetensors"]


def wrong_sizes(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Name the files of a snapshot that do not have the size which the hub says."""
    return [
        name for name, size in sizes.items() if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]
