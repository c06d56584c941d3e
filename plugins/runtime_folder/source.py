"""Finds model folders by path, or by name under the configured folders."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from runtime.errors import CheckpointCorrupt, ModelNotFound
from runtime.spi import ModelListing, ModelSource, Progress

SOURCE = "folder"


class FolderSource(ModelSource):
    """Answers with the folder itself: nothing is copied."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(path.expanduser().absolute() for path in paths)

    def claims(self, name: str) -> bool:
        """Claim what is written as a path, and the names of folders under the configured ones."""
        return _is_path(name) or self._named(name) is not None

    def local(self) -> list[ModelListing]:
        """List the model folders one and two levels below the configured ones; of two with one name, the first."""
        listings: dict[str, ModelListing] = {}
        for path in self._paths:
            for folder in _model_folders(path):
                name = folder.relative_to(path).as_posix()
                try:
                    files = [file.stat() for file in folder.iterdir() if file.is_file()]
                except OSError:
                    continue  # it may not be read, or is being deleted
                listings.setdefault(
                    name,
                    ModelListing(
                        name=name,
                        source=SOURCE,
                        bytes=sum(stat.st_size for stat in files),
                        modified=max((stat.st_mtime for stat in files), default=0.0),
                        path=folder,
                    ),
                )
        return list(listings.values())

    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the folder."""
        del progress
        folder = Path(name).expanduser().absolute() if _is_path(name) else self._named(name)
        if folder is None or not folder.is_dir():
            looked = str(folder) if folder is not None else ", ".join(map(str, self._paths)) or "no folder: none is set"
            raise ModelNotFound(f"there is no model folder {name} (looked in {looked}){self._nearest(name)}")
        if not (folder / "config.json").is_file():
            gguf = sorted(file.name for file in folder.glob("*.gguf"))
            hint = f"; name the file to load it: {folder / gguf[0]}" if gguf else self._nearest(name)
            raise ModelNotFound(f"{folder} is not a model folder: it has no config.json{hint}")
        if not any(folder.glob("*.safetensors")):
            raise CheckpointCorrupt(
                f"{folder} has a config.json and no safetensors files; weights in other formats are not read"
            )
        return folder

    def _named(self, name: str) -> Path | None:
        """Find a name below the configured folders, and never outside them: names come from clients too."""
        parts = PurePosixPath(name).parts
        if _is_path(name) or not 1 <= len(parts) <= 2 or ".." in parts:
            return None
        for path in self._paths:
            folder = path.joinpath(*parts)
            if _is_model(folder):
                return folder
        return None

    def _nearest(self, name: str) -> str:
        names = [listing.name for listing in self.local()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
        return f"; there are {', '.join(near)}" if near else ""


def _is_path(name: str) -> bool:
    return name in (".", "..", "~") or name.startswith(("/", "./", "../", "~/"))


def _model_folders(path: Path) -> Iterator[Path]:
    for child in _folders(path):
        if _is_model(child):
            yield child
        else:
            yield from (folder for folder in _folders(child) if _is_model(folder))


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:
        return False  # nobody but its owner may look into it


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []  # a folder that is not there yet, or is not ours to read, holds no model for us
