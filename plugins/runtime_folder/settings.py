"""The section ``plugins.folder``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class FolderSettings(BaseModel):
    """Where to look, before the folders of ``models.path``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: tuple[Path, ...] = ()
    """Folders that hold model folders, as ``name`` or as ``org/name``."""
